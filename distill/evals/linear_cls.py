"""Linear classification of images with frozen features, over a sweep of learning rates and features.

Protocol (DINOv2's, Oquab et al. 2023; that of TIPS and TIPSv2 is not known here):

- Features: CLS-1 (`cls`) of the last block, or of the last four concatenated (`blocks`), each after the model's final
  norm, alone or with the mean of the last block's patches. Named `last1`, `last1_patches`, `last4`, `last4_patches`; a
  model with fewer blocks takes all of them for the larger number.
- One linear layer for each feature and each learning rate (`lr`: DINOv2's thirteen, times batch / 256), weights drawn
  normally with std 0.01, no weight decay: SGD with momentum 0.9, cosine decay to 0, `batch` images a step, for ten
  passes over the train split and at least 500 steps (`steps` overrides). All are trained together, on the same batches.
  Seeded.
- Images are resized to a square (`fit`), without random crops and flips: the features are computed once and kept in
  float32 on the CPU, a split in memory if all of it fits into `memory` GB, else in a temporary file.
- `top1` is the best head on the evaluated split, as DINOv2 reports it; `top1_last4` ... the best of each feature;
  details hold all. With one rate and one number of blocks there is little left to choose. `top1_constant` always
  answers the commonest training class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError
from distill.evals.cache import Store
from distill.evals.datasets.base import LABELS, TRAIN, EvalDataset
from distill.evals.engine import run_task
from distill.evals.features import FITS, Batch, Encoder, Needs, device_of
from distill.evals.per_image import mean_samples
from distill.evals.results import TaskResult
from distill.evals.task import (
    Context,
    Outcome,
    Task,
    TaskOptions,
    above_zero,
    at_least,
    choice,
    rates_of,
    require_layers,
)

RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]  # for a batch of RATE_BATCH
RATE_BATCH = 256
MOMENTUM = 0.9
INITIAL_STD = 0.01
EPOCHS, LEAST_STEPS = 10, 500
ROWS = 4096  # images classified at a time


@dataclass
class LinearClassificationOptions(TaskOptions):
    lr: float | list = field(default_factory=lambda: list(RATES))  # for a batch of 256: one or several
    blocks: int | list = field(default_factory=lambda: [1, 4])  # how many last blocks: one number or several
    cls: int = 1  # which CLS token
    batch: int = 1024  # images a step
    steps: int | None = None  # None: ten passes over the train split, at least 500
    fit: str = "square"  # how images are resized: square or keep
    memory: float = 4.0  # gigabytes of features kept in memory

    def resolve(self, dataset: EvalDataset) -> None:
        self.lr = self.rates
        self.blocks = [self.blocks] if isinstance(self.blocks, int) else list(self.blocks)
        if not self.blocks or not all(isinstance(n, int) and n >= 1 for n in self.blocks):
            raise UserError(f"linear_cls.blocks = {self.blocks}: it must be whole numbers from 1, such as 1 or 1,4.")
        for name in ("cls", "batch"):
            at_least("linear_cls", name, getattr(self, name), 1)
        if self.steps is not None:
            at_least("linear_cls", "steps", self.steps, 1)
        choice("linear_cls", "fit", self.fit, FITS)
        above_zero("linear_cls", "memory", self.memory)

    @property
    def rates(self) -> list[float]:
        return rates_of("linear_cls", "lr", self.lr)


class LinearClassification(Task):
    name = "linear_cls"
    requires = (LABELS, TRAIN)
    headline = ("top1", "top1_last1", "top1_last1_patches", "top1_last4", "top1_last4_patches", "top1_constant")
    Options = LinearClassificationOptions
    resources = ("memory",)

    def __init__(self, context: Context, options: LinearClassificationOptions):
        super().__init__(context, options)
        depth = context.model.image.depth
        assert isinstance(options.blocks, list)
        self.counts_of_blocks = sorted({min(count, depth) for count in options.blocks})
        self.blocks = tuple(range(depth - self.counts_of_blocks[-1], depth))
        self.store = Store(options.memory, "linear_cls.memory")
        self.features: dict[str, Rows] = {}  # by split [N, (1 + blocks) * D]
        self.labels: dict[str, list[int]] = {"train": [], "test": []}
        self.indices: list[int] = []  # of the evaluated images with a label
        self.without = 0
        self.width = 0

    @classmethod
    def check_model(cls, model: Any, options: LinearClassificationOptions) -> None:
        require_layers(cls.name, model)
        _require_cls(options.cls, getattr(model.image, "cls_tokens", options.cls))

    @property
    def needs(self) -> Needs:
        return Needs(encode=False, layers=self.blocks, fit=self.options.fit)

    def fit(self, batch: Batch) -> None:
        self._add("train", batch)

    def read(self, batch: Batch) -> None:
        self._add("test", batch)
        self.indices += [example.index for example in batch.examples if example.label is not None]

    def _add(self, split: str, batch: Batch) -> None:
        labels = [example.label for example in batch.examples]
        kept = [at for at, label in enumerate(labels) if label is not None]
        self.without += len(labels) - len(kept)
        self.labels[split] += [label for label in labels if label is not None]
        tokens = [self._token(batch.layers[at][0]) for at in reversed(self.blocks)]
        mean = batch.layers[self.blocks[-1]][1].mean((1, 2))  # [B, D]
        self.width = mean.shape[1]
        rows = torch.cat([mean, *tokens], 1)  # [B, (1 + blocks) * D]
        if not self.features:
            dataset = self.context.dataset
            most = {"train": len(dataset.train()), "test": len(dataset)}
            self.store.expect(sum(most.values()) * rows.shape[1] * rows.element_size())
            self.features = {name: Rows(count, self.store) for name, count in most.items()}
        self.features[split].add(rows[kept])

    def _token(self, cls: Tensor) -> Tensor:  # [B, C, D] -> [B, D]
        _require_cls(self.options.cls, cls.shape[1])  # again: a tower need not say how many it has
        return cls[:, self.options.cls - 1]

    def outcome(self) -> Outcome:
        dataset, options = self.context.dataset, self.options
        for split, labels in self.labels.items():
            if not labels:
                raise UserError(f"{dataset.name}: no image of the {split} split has a label.")
        train, test = (self.features[split].filled for split in ("train", "test"))
        seen = sorted(set(self.labels["train"]))
        position = {label: at for at, label in enumerate(seen)}
        targets = torch.tensor([position[label] for label in self.labels["train"]])
        truth = torch.tensor([position.get(label, -1) for label in self.labels["test"]])
        batch = min(options.batch, len(train))
        steps = options.steps or max(LEAST_STEPS, EPOCHS * math.ceil(len(train) / batch))
        rates = [rate * batch / RATE_BATCH for rate in options.rates]
        scores: dict[str, list[float]] = {}
        per_image: dict[str, Any] = {}
        for name, columns in self._columns().items():
            heads = SgdHeads(columns.stop - columns.start, len(seen), rates, device_of(self.context.model))
            heads.train(train[:, columns], targets, batch, steps)
            hits = (heads.predict(test[:, columns]) == truth).double()  # [R, N]
            scores[name] = hits.mean(1).tolist()
            kept = hits[hits.mean(1).argmax()].tolist()
            per_image[f"top1_{name}"] = mean_samples(dict(zip(self.indices, kept)))
        best = {f"top1_{name}": max(values) for name, values in scores.items()}
        commonest = targets.bincount().argmax()
        per_image["top1"] = per_image[max(best, key=best.__getitem__)]
        metrics = {"top1": max(best.values()), **best, "top1_constant": float((truth == commonest).float().mean())}
        counts = {"images": len(truth), "train_images": len(train), "classes": len(seen), "steps": steps}
        if self.without:
            counts["images_without_label"] = self.without
        details = {"top1": {name: dict(zip(map(str, options.rates), values)) for name, values in scores.items()}}
        return Outcome(metrics, self.protocol(momentum=MOMENTUM), counts, details, per_image)

    def _columns(self) -> dict[str, slice]:
        """Which columns of the features (mean patch, CLS of the last block, of the one before ...) each name has."""
        width = self.width
        named = {}
        for count in self.counts_of_blocks:
            named[f"last{count}"] = slice(width, (1 + count) * width)
            named[f"last{count}_patches"] = slice(0, (1 + count) * width)
        return named


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """Linear classification with `LinearClassificationOptions`; the protocol is in the module's docstring."""
    return run_task(LinearClassification, model, dataset, **options)


def _require_cls(wanted: int, there: int) -> None:
    if wanted > there:
        raise UserError(f"linear_cls.cls = {wanted}: the model has {there} CLS token(s).")


class Rows:
    """Vectors in one block of `store`, taken once for the `most` that may come: a large train split fits only once."""

    def __init__(self, most: int, store: Store):
        self.most, self.store, self.count = most, store, 0
        self.block = torch.zeros(0, 0)

    def add(self, rows: Tensor) -> None:
        """rows `[n, D]`."""
        if not len(self.block):
            self.block = self.store.empty((self.most, rows.shape[1]), rows.dtype)
        self.block[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    @property
    def filled(self) -> Tensor:
        """All that were added `[N, D]`, not copied."""
        return self.block[: self.count]


class SgdHeads:
    """R linear classifiers on the same features, by SGD with momentum: what R runs of `torch.optim.SGD` give.

    The gradient is written out, so that all heads take one matrix product a pass.
    """

    def __init__(self, width: int, classes: int, rates: Sequence[float], device: torch.device):
        self.device, self.classes = device, classes
        self.rates = torch.tensor(rates, device=device).repeat_interleave(classes)  # [R * K]
        start = INITIAL_STD * torch.randn(width, classes, generator=torch.Generator().manual_seed(0))
        self.weight = start.to(device).repeat(1, len(rates))  # [D, R * K]
        self.bias = torch.zeros(len(self.rates), device=device)

    def train(self, features: Tensor, labels: Tensor, batch: int, steps: int) -> None:
        """features `[N, D]`, labels `[N]` in `[0, classes)`, on the CPU. Batches have one size; epochs are shuffled."""
        generator = torch.Generator().manual_seed(0)
        speed, drift = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        order = torch.zeros(0, dtype=torch.int64)
        for step in range(steps):
            if len(order) < batch:
                order = torch.randperm(len(labels), generator=generator)
            chosen, order = order[:batch], order[batch:]
            x, y = features[chosen].to(self.device), labels[chosen].to(self.device)
            slope = self._slope(x, y)  # [B, R * K]
            speed.mul_(MOMENTUM).add_(x.T @ slope)
            drift.mul_(MOMENTUM).add_(slope.sum(0))
            rates = self.rates * (0.5 * (1 + math.cos(math.pi * step / steps)))
            self.weight -= rates * speed
            self.bias -= rates * drift

    def _slope(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradient of the batch's mean cross-entropy by the logits: (softmax - one-hot) / B."""
        shares = self._logits(x).softmax(-1)  # [B, R, K]
        return ((shares - F.one_hot(y, self.classes)[:, None]) / len(y)).flatten(1)

    def _logits(self, x: Tensor) -> Tensor:  # [B, D] -> [B, R, K]
        return (x @ self.weight + self.bias).unflatten(-1, (-1, self.classes))

    def predict(self, features: Tensor) -> Tensor:
        """Classes `[R, N]`, on the CPU."""
        return torch.cat([self._logits(x.to(self.device)).argmax(-1).cpu() for x in features.split(ROWS)]).T
