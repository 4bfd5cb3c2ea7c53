"""k-nearest-neighbour classification of images with frozen features.

Protocol (DINOv2's; that of TIPS and TIPSv2 is not known here): the train split's images are the memory. For each test
image the k nearest by cosine vote for their class with weight exp(cosine / T), T = 0.07; top-1 is the share of test
images whose class gets most. Features, unit length each: CLS-1, CLS-2, and `patches`, the mean of the final patch
tokens. All k of the sweep are reported (`top1_cls1_k10`); `top1_cls1` is the best of them, as is usual. k larger than
the memory means all of it. `top1_constant` always answers the commonest training class. Images are resized to a square
(`fit`). Features are kept in float32, `memory` GB of them in memory, the rest in temporary files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.evals.cache import Store
from distill.evals.datasets.base import LABELS, TRAIN, EvalDataset
from distill.evals.engine import run_task
from distill.evals.features import FITS, Batch, Encoder, Needs
from distill.evals.labelled import Labelled, feature_bytes
from distill.evals.per_image import mean_samples
from distill.evals.results import TaskResult
from distill.evals.task import Context, Outcome, Task, TaskOptions, above_zero, choice

ROWS, BLOCK = 1024, 1 << 16  # test images and training images compared at a time


@dataclass
class NeighbourOptions(TaskOptions):
    k: int | list = field(default_factory=lambda: [10, 20, 100, 200])  # neighbours: one number or several
    temperature: float = 0.07
    fit: str = "square"  # how images are resized: square or keep
    memory: float = 4.0  # gigabytes of features kept in memory

    def resolve(self, dataset: EvalDataset) -> None:
        self.k = [self.k] if isinstance(self.k, int) else list(self.k)
        if not self.k or not all(isinstance(k, int) and k >= 1 for k in self.k):
            raise UserError(f"knn.k = {self.k}: it must be whole numbers from 1, such as 10 or 10,20.")
        if self.temperature <= 0:
            raise UserError(f"knn.temperature = {self.temperature}: it must be above 0 (usual: 0.07).")
        choice("knn", "fit", self.fit, FITS)
        above_zero("knn", "memory", self.memory)


class NearestNeighbours(Task):
    name = "knn"
    requires = (LABELS, TRAIN)
    headline = ("top1_cls1", "top1_cls2", "top1_patches", "top1_constant")
    Options = NeighbourOptions
    resources = ("memory",)

    def __init__(self, context: Context, options: NeighbourOptions):
        super().__init__(context, options)
        self.store = Store(options.memory, "knn.memory")
        self.train, self.test = Labelled(self.store), Labelled(self.store)

    @property
    def needs(self) -> Needs:
        return Needs(fit=self.options.fit)

    def fit(self, batch: Batch) -> None:
        if not self.train.parts:
            dataset = self.context.dataset
            self.store.expect(feature_bytes(batch) * (len(dataset.train()) + len(dataset)))
        self.train.add(batch)

    def read(self, batch: Batch) -> None:
        self.test.add(batch)

    def outcome(self) -> Outcome:
        dataset = self.context.dataset
        if not self.train.labels or not self.test.labels:
            raise UserError(
                f"{dataset.name}: no image of the {'train' if not self.train.labels else 'test'} split has a label."
            )
        classes = len(dataset.class_names)
        metrics: dict[str, float] = {}
        per_image: dict[str, Any] = {}
        for name in self.test.parts:
            truth = self.test.targets()
            votes = vote(
                self.train.blocks(name, BLOCK),
                self.train.targets(),
                self.test.features(name),
                self.options.k,
                self.options.temperature,
                classes,
            )
            right = {k: (label == truth).double() for k, label in votes.items()}
            scores = {k: float(hits.float().mean()) for k, hits in right.items()}
            metrics[f"top1_{name}"] = max(scores.values())
            best = right[max(scores, key=scores.__getitem__)]
            per_image[f"top1_{name}"] = mean_samples(dict(zip(self.test.indices, best.tolist())))
            metrics |= {f"top1_{name}_k{k}": value for k, value in scores.items()}
        commonest = torch.tensor(self.train.labels).bincount(minlength=classes).argmax()
        metrics["top1_constant"] = float((torch.tensor(self.test.labels) == commonest).float().mean())
        counts = {
            "images": len(self.test.labels),
            "train_images": len(self.train.labels),
            "classes": len(set(self.test.labels)),
        }
        if self.train.without + self.test.without:
            counts["images_without_label"] = self.train.without + self.test.without
        return Outcome(metrics, self.protocol(), counts, {}, per_image)


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """k-NN on `dataset` with `NeighbourOptions`; the protocol is in the module's docstring."""
    return run_task(NearestNeighbours, model, dataset, **options)


def vote(
    memory: Iterable[Tensor], labels: Tensor, queries: Tensor, sweep: Sequence[int], temperature: float, classes: int
) -> dict[int, Tensor]:
    """Predicted classes `[Q]` by k. memory `[N, D]`, in parts, and queries `[Q, D]` have unit length, labels `[N]`."""
    predicted: dict[int, list[Tensor]] = {k: [] for k in sweep}
    for near, at in zip(*(found.split(ROWS) for found in nearest(memory, queries, max(sweep)))):
        weights = ((near - 1) / temperature).exp()  # the common factor exp(-1/T) keeps them at most 1
        for k in sweep:
            votes = weights.new_zeros(len(near), classes)
            votes.scatter_add_(1, labels[at[:, :k]], weights[:, :k])
            predicted[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in predicted.items()}


def nearest(memory: Iterable[Tensor], queries: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The `most` highest cosines of each query (all, if memory has fewer) and their places in memory, `[Q, k]` each.

    Nearest first. One part of memory is compared at a time.
    """
    near = queries.new_empty(len(queries), 0)
    at = torch.empty_like(near, dtype=torch.int64)
    start = 0
    for block in memory:
        parts = [(part @ block.T).topk(min(most, len(block)), dim=1) for part in queries.split(ROWS)]
        cosines, places = (torch.cat(found) for found in zip(*parts))  # [Q, k], nearest first
        if start:
            both = torch.cat([near, cosines], 1)
            cosines, order = both.topk(min(most, both.shape[1]), dim=1)
            places = torch.cat([at, places + start], 1).gather(1, order)
        near, at = cosines, places
        start += len(block)
    return near, at
