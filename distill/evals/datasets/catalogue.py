"""The benchmarks there are. A new one is a file with a `Benchmark`, and a line here."""

from __future__ import annotations

from distill.evals.datasets.ade20k import Ade20k
from distill.evals.datasets.benchmark import Benchmark
from distill.evals.datasets.cityscapes import Cityscapes
from distill.evals.datasets.coco import CocoObject, CocoStuff
from distill.evals.datasets.docci import Docci
from distill.evals.datasets.imagenet import ImageNet
from distill.evals.datasets.karpathy import KARPATHY
from distill.evals.datasets.navi import Navi
from distill.evals.datasets.nyuv2 import NyuV2
from distill.evals.datasets.pascal import PASCAL
from distill.evals.datasets.uned import UnEd

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.kind: benchmark
    for benchmark in (
        Ade20k(),
        *PASCAL,
        CocoObject(),
        CocoStuff(),
        Cityscapes(),
        ImageNet(),
        *KARPATHY,
        Docci(),
        NyuV2(),
        Navi(),
        UnEd(),
    )
}
