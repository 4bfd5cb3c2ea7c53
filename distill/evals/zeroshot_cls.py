"""Zero-shot classification: an image gets the class whose text is nearest to its CLS token.

Protocol (CLIP's, Radford et al. 2021, which TIPSv2's Table 6 follows; prompt set and CLS are not stated there): every
class name in every prompt of the set, unit length, averaged over prompts, unit length again; the class of highest
cosine is the answer. Prompt sets: `clip80` (CLIP's 80, the default), `clip7`, `photo`, `plain` (what the scenes use)
and others. Images are resized to a square of `size` (`fit`). Every feature is scored: CLS-1, CLS-2, and `both`, the
mean of the two unit vectors. The candidates are the classes that an image's label can be (of the scenes: things, not
grounds).

Metrics: share of images whose class is nearest (`top1_cls1`), and among the five nearest (`top5_cls1`). Equal cosines
count by what a random order of the equals is expected to give. `top1_chance`: a random class; `top1_constant`: the
commonest one, always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.evals.datasets.base import LABELS, EvalDataset
from distill.evals.engine import run_task
from distill.evals.features import FITS, Batch, Encoder, Needs
from distill.evals.per_image import mean_samples
from distill.evals.prompts import templates
from distill.evals.results import TaskResult
from distill.evals.retrieval import cls_features, hit_probability
from distill.evals.task import Context, Outcome, Task, TaskOptions, choice

DEFAULT_PROMPTS = "clip80"
SEGMENTATION_PROMPTS = "tcl"  # a dataset's own set when nobody chose one
RANKS = (1, 5)


@dataclass
class ZeroShotClassificationOptions(TaskOptions):
    prompts: str | None = None  # prompt set (None: the dataset's own, but clip80 for tcl, which is for segmentation)
    fit: str = "square"  # how images are resized: square or keep

    def resolve(self, dataset: EvalDataset) -> None:
        own = DEFAULT_PROMPTS if dataset.prompts == SEGMENTATION_PROMPTS else dataset.prompts
        self.prompts = self.prompts or own
        templates(self.prompts)
        choice("zeroshot_cls", "fit", self.fit, FITS)


class ZeroShotClassification(Task):
    name = "zeroshot_cls"
    requires = (LABELS,)
    text = True
    headline = ("top1_cls1", "top1_cls2", "top1_both", "top5_both", "top1_chance")
    Options = ZeroShotClassificationOptions

    def __init__(self, context: Context, options: ZeroShotClassificationOptions):
        super().__init__(context, options)
        dataset = context.dataset
        self.candidates = torch.tensor(dataset.label_classes)  # [K]
        names = [dataset.prompt_names[at] for at in dataset.label_classes]
        self.texts = context.texts.classes(names, options.prompts or DEFAULT_PROMPTS)  # [K, D]
        self.position = {label: at for at, label in enumerate(dataset.label_classes)}
        self.scores: dict[str, list[Tensor]] = {}
        self.targets: list[int] = []
        self.indices: list[int] = []  # of the images with a label
        self.without = 0

    @property
    def needs(self) -> Needs:
        return Needs(fit=self.options.fit)

    def read(self, batch: Batch) -> None:
        assert batch.cls is not None
        labels = [example.label for example in batch.examples]
        kept = [at for at, label in enumerate(labels) if label is not None]
        self.without += len(labels) - len(kept)
        self.indices += [batch.examples[at].index for at in kept]
        self.targets += [self.position[label] for label in labels if label is not None]
        for name, feature in cls_features(batch.cls).items():
            self.scores.setdefault(name, []).append((feature[kept] @ self.texts.T.to(feature.device)).cpu())

    def outcome(self) -> Outcome:
        dataset = self.context.dataset
        if not self.targets:
            raise UserError(f"{dataset.name}: no image has a label.")
        targets = torch.tensor(self.targets)  # [N]
        metrics, per_image = {}, {}
        for name, parts in self.scores.items():
            for rank, hits in hit_rates(torch.cat(parts), targets).items():
                metrics[f"top{rank}_{name}"] = float(hits.mean())
                per_image[f"top{rank}_{name}"] = mean_samples(dict(zip(self.indices, hits.tolist())))
        count = targets.bincount(minlength=len(self.candidates))
        metrics["top1_chance"] = 1 / len(self.candidates)
        metrics["top1_constant"] = float(count.max() / len(targets))
        counts = {
            "images": len(targets),
            "classes": len(self.candidates),
            "classes_present": int((count > 0).sum()),
            "prompts": len(templates(self.options.prompts)),
        }
        if self.without:
            counts["images_without_label"] = self.without
        return Outcome(metrics, self.protocol(), counts, {}, per_image)


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """Zero-shot classification with `ZeroShotClassificationOptions`; the protocol is in the module's docstring."""
    return run_task(ZeroShotClassification, model, dataset, **options)


def recalls(scores: Tensor, targets: Tensor) -> dict[int, float]:
    """Share of rows of `scores` `[N, K]` whose target `[N]` is among the first RANKS, ties by expectation."""
    return {rank: float(hits.mean()) for rank, hits in hit_rates(scores, targets).items()}


def hit_rates(scores: Tensor, targets: Tensor) -> dict[int, Tensor]:
    """How probably the target of each row is among the first RANKS, `[N]` float64."""
    own = scores.gather(1, targets[:, None])  # [N, 1]
    above, ties = (scores > own).sum(1), (scores == own).sum(1) - 1
    one = torch.ones_like(ties)
    return {rank: hit_probability(above, one, ties, rank) for rank in RANKS}
