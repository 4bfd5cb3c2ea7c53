"""Patch-level linear probe: how well a linear map reads the class of a patch from its final token.

Protocol: multinomial logistic regression on standardised features (mean 0, variance 1 over training patches), L2
penalty `penalty`, L-BFGS to convergence (`distill.evals.probes`); the likeliest class is the answer. Fitted on the
labelled patches of the train split (at most `probes.LIMIT`, evenly spread), scored on those of the dataset. A patch's
class is that of the pixel at its centre (`target: centre`), or the commonest one in it (`target: majority`); patches
marked ignore are left out. Metrics: accuracy over patches, and mean of the per-class recalls over the classes that
occur. `accuracy_ridge` is the same with a ridge regression to one-hot classes (penalty `ridge`), in closed form on all
patches: squared error lets classes hide each other, so it is lower with many classes. `baseline_raw` is the logistic
probe on the patch's pixels, which a model must beat; `accuracy_constant` always answers the commonest training class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError
from distill.evals.datasets.base import MASKS, TRAIN, EvalDataset
from distill.evals.engine import run_task
from distill.evals.features import Batch, Encoder, Needs
from distill.evals.metrics import accuracy, confusion, mean_class_accuracy
from distill.evals.per_image import iou_samples, ratio_samples, right_of_classes
from distill.evals.probes import Logistic, Ridge
from distill.evals.results import TaskResult
from distill.evals.task import Context, Outcome, Task, TaskOptions, choice

TARGETS = ("centre", "majority")


@dataclass
class ProbeOptions(TaskOptions):
    penalty: float = 1e-4  # of the logistic probe: times the squared weights, added to the mean cross-entropy
    ridge: float = 1e-3  # of the ridge probe: relative to the features' variance (1)
    target: str = "centre"  # class of a patch: its centre pixel's, or the majority's

    def resolve(self, dataset: EvalDataset) -> None:
        choice("linear_patch", "target", self.target, TARGETS)
        for name, usual in (("penalty", 1e-4), ("ridge", 1e-3)):
            if getattr(self, name) <= 0:
                raise UserError(f"linear_patch.{name} = {getattr(self, name)}: it must be above 0 (usual: {usual}).")


class PatchProbe(Task):
    name = "linear_patch"
    requires = (MASKS, TRAIN)
    headline = ("accuracy", "mean_class_accuracy", "accuracy_ridge", "baseline_raw", "accuracy_constant")
    Options = ProbeOptions

    def __init__(self, context: Context, options: ProbeOptions):
        super().__init__(context, options)
        self.dataset = context.dataset
        classes = len(self.dataset.class_names)
        self.probes: dict[str, Ridge | Logistic] = {
            "tokens": Logistic(classes, options.penalty),
            "ridge": Ridge(classes, options.ridge),
            "pixels": Logistic(classes, options.penalty),
        }
        self.matrices = {name: torch.zeros(classes, classes, dtype=torch.int64) for name in self.probes}
        self.shares: dict[str, dict[int, list[int]]] = {name: {} for name in self.probes}  # by image: right, patches
        self.recalls: dict[int, list[int]] = {}  # by image: class, right, patches, class, ...
        self.images = self.train_images = 0

    @property
    def needs(self) -> Needs:
        return Needs(masks=True)

    def fit(self, batch: Batch) -> None:
        self.train_images += len(batch.examples)
        labels, keep = self._labels(batch)
        for name, features in self._features(batch).items():
            if keep.any():
                self.probes[name].add(features[keep], labels[keep])

    def read(self, batch: Batch) -> None:
        if not int(self.probes["tokens"].counts.sum()):
            raise UserError(f"{self.dataset.train().name}: none of its patches has a class to fit on.")
        self.images += len(batch.examples)
        labels, keep = self._labels(batch)
        for name, features in self._features(batch).items():
            predicted = torch.zeros_like(labels)
            predicted[keep] = self.probes[name].predict(features[keep])
            of_image = (x.unflatten(0, (len(batch.examples), -1)).cpu() for x in (labels, predicted))
            for example, truth, found in zip(batch.examples, *of_image):
                self._count(name, example.index, truth, found)

    def _count(self, name: str, image: int, truth: Tensor, found: Tensor) -> None:
        """One image's patches `[h*w]`."""
        matrix = confusion(truth, found, len(self.matrices[name]), self.dataset.ignore)
        self.matrices[name] += matrix
        self.shares[name][image] = [int(matrix.diagonal().sum()), int(matrix.sum())]
        if name == "tokens":
            self.recalls[image] = right_of_classes(matrix)

    def _features(self, batch: Batch) -> dict[str, Tensor]:
        """By probe: final tokens (for both kinds), and the pixels of each patch; `[B*h*w, D]`."""
        assert batch.patches is not None
        patch = self.context.model.image.patch
        pixels = F.unfold(batch.images, patch, stride=patch).transpose(1, 2)  # [B, h*w, 3*patch*patch]
        tokens = batch.patches.flatten(0, 2)
        return {"tokens": tokens, "ridge": tokens, "pixels": pixels.flatten(0, 1)}

    def _labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Class of each patch `[B*h*w]`, and which are not ignore."""
        assert batch.patches is not None
        grid, ignore = (batch.patches.shape[1], batch.patches.shape[2]), self.dataset.ignore
        masks = [torch.from_numpy(example.mask).long() for example in batch.examples]
        if self.options.target == "centre":
            found = [centre_class(mask, grid) for mask in masks]
        else:
            found = [majority_class(mask, grid, ignore) for mask in masks]
        labels = torch.stack(found).flatten().to(batch.patches.device)
        return labels, labels != ignore

    def outcome(self) -> Outcome:
        tokens, pixels = self.matrices["tokens"], self.matrices["pixels"]
        if tokens.sum() == 0:
            raise UserError(f"{self.dataset.name}: none of its patches has a class to score.")
        truth = tokens.sum(1)
        metrics = {
            "accuracy": accuracy(tokens),
            "mean_class_accuracy": mean_class_accuracy(tokens),
            "accuracy_ridge": accuracy(self.matrices["ridge"]),
            "baseline_raw": accuracy(pixels),
            "accuracy_constant": float(truth[int(self.probes["tokens"].counts.argmax())] / truth.sum()),
        }
        counts = {
            "images": self.images,
            "train_images": self.train_images,
            "patches": int(truth.sum()),
            "train_patches": int(self.probes["tokens"].counts.sum()),
            "classes": len(truth),
            "classes_present": int((truth > 0).sum()),
        }
        recall = tokens.diagonal().double() / truth
        names = self.dataset.class_names
        details = {"recall": {name: float(r) for name, r, n in zip(names, recall, truth) if n > 0}}
        per_image = {
            "accuracy": ratio_samples(self.shares["tokens"]),
            "mean_class_accuracy": iou_samples(self.recalls),
            "accuracy_ridge": ratio_samples(self.shares["ridge"]),
            "baseline_raw": ratio_samples(self.shares["pixels"]),
        }
        return Outcome(metrics, self.protocol(ignore=self.dataset.ignore), counts, details, per_image)


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """The patch-level probe with `ProbeOptions`; the protocol is in the module's docstring."""
    return run_task(PatchProbe, model, dataset, **options)


def centre_class(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Class `[h, w]` of the pixel at the centre of each cell when the mask `[H, W]` is divided into `grid` cells."""
    rows, columns = (((torch.arange(cells) + 0.5) * length / cells).long() for cells, length in zip(grid, mask.shape))
    return mask[rows][:, columns]


def majority_class(mask: Tensor, grid: tuple[int, int], ignore: int) -> Tensor:
    """Commonest class `[h, w]` in each cell of the mask `[H, W]`; among equals the lowest, and `ignore` last."""
    values = mask.unique()
    values = torch.cat([values[values != ignore], values[values == ignore]])
    layers = (mask == values[:, None, None]).float()  # [V, H, W]
    return values[F.adaptive_avg_pool2d(layers, grid).argmax(0)]
