"""Linear segmentation: a linear layer on frozen patch features names the class of every pixel.

Protocol (DINOv2's "linear", Oquab et al. 2023, with the CLS token of TIPS v1, section 4.1, which TIPSv2 follows):

- Images whole: short side to `size`, aspect kept, sides rounded up to the patch; [0, 1]. No crops, flips or colour
  changes: the features of the frozen trunk are computed once and kept in float16, `memory` GB of them in memory, the
  rest in temporary files.
- Features: final patch tokens, and with `cls=with` CLS-1 beside each. Batch norm, then a linear layer. The norm's
  statistics are those of the whole train split (what batch norm estimates from batches); its scale and shift are part
  of the linear layer.
- Training: cross-entropy on logits raised bilinearly (align_corners=False) to the label's size, at `pixels` random
  pixels of each of `images` images a step; pixels marked ignore have no loss. The logits at a pixel are those of the
  features interpolated there, so that this is the full loss, sampled. AdamW, weight decay 1e-4, linear warm-up and
  decay, `steps` steps (the published probes: 40,000). Seeded.
- All learning rates of `lr` are trained together, on the same batches.
- Score: logits raised to the mask's size, argmax, one confusion matrix over all pixels but those marked ignore; mean
  IoU over classes with a non-empty union. `miou` is the best of the sweep on the evaluated split, as is usual
  (`miou_lr0.001` ... tell all); give one rate for a number without that choice. `miou_chance`: labels drawn uniformly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError
from distill.evals.cache import DenseCache, draw_pixels, interpolate
from distill.evals.datasets.base import MASKS, TRAIN, EvalDataset, Example
from distill.evals.engine import run_task
from distill.evals.features import Batch, Encoder, Needs, device_of
from distill.evals.linear_heads import LinearHeads, Standardise, optimise
from distill.evals.metrics import accuracy, chance_miou, class_iou, confusion, mean_class_accuracy, mean_iou
from distill.evals.per_image import iou_samples, overlaps
from distill.evals.results import TaskResult
from distill.evals.segment import argmax_raised, together
from distill.evals.task import Context, Outcome, Task, TaskOptions, above_zero, at_least, choice, rates_of

CLASSES_AT_A_TIME = 32  # raised to full size
IGNORED = -1  # in the masks kept for training


@dataclass
class LinearSegmentationOptions(TaskOptions):
    cls: str = "with"  # CLS-1 beside each patch: with or without
    lr: float | list = field(default_factory=lambda: [1e-3, 3e-3, 1e-2])  # peak learning rates: one or several
    steps: int = 500
    images: int = 16  # a step
    pixels: int = 256  # of each image a step
    memory: float = 4.0  # gigabytes of features and labels kept in memory

    def resolve(self, dataset: EvalDataset) -> None:
        choice("linear_seg", "cls", self.cls, ("with", "without"))
        self.lr = self.rates
        for name in ("steps", "images", "pixels"):
            at_least("linear_seg", name, getattr(self, name), 1)
        above_zero("linear_seg", "memory", self.memory)

    @property
    def rates(self) -> list[float]:
        return rates_of("linear_seg", "lr", self.lr)


class LinearSegmentation(Task):
    name = "linear_seg"
    requires = (MASKS, TRAIN)
    headline = ("miou", "pixel_accuracy", "mean_class_accuracy", "miou_chance")
    Options = LinearSegmentationOptions
    resources = ("memory",)

    def __init__(self, context: Context, options: LinearSegmentationOptions):
        super().__init__(context, options)
        self.dataset, self.device = context.dataset, device_of(context.model)
        self.classes = len(self.dataset.class_names)
        self.cache = DenseCache(options.memory, "linear_seg.memory")
        self.norms = [Standardise(), Standardise()]  # of patches and CLS
        self.heads: LinearHeads | None = None
        self.labelled = 0  # pixels
        self.matrices = [torch.zeros(self.classes, self.classes, dtype=torch.int64) for _ in options.rates]
        self.overlaps: list[dict[int, list[int]]] = [{} for _ in options.rates]  # of each image
        self.images = self.train_images = 0

    @property
    def needs(self) -> Needs:
        return Needs(masks=True)

    def fit(self, batch: Batch) -> None:
        features = self._features(batch)
        for norm, feature in zip(self.norms, features):
            norm.add(feature)
        masks = [self._narrow(example) for example in batch.examples]
        self.labelled += sum(int((mask != IGNORED).sum()) for mask in masks)
        self.cache.add(features, masks)
        self.train_images += len(masks)

    def _narrow(self, example: Example) -> Tensor:
        """The mask `[H, W]` as int16, IGNORED where the dataset's own value, which may be larger, says ignore."""
        mask = torch.from_numpy(example.mask).long()
        return mask.where(mask != self.dataset.ignore, IGNORED).short()

    def _features(self, batch: Batch) -> list[Tensor]:
        """Patches `[B, h, w, D]`, and if asked CLS-1 `[B, D]`."""
        assert batch.cls is not None and batch.patches is not None
        return [batch.patches, batch.cls[:, 0]] if self.options.cls == "with" else [batch.patches]

    def _train(self) -> LinearHeads:
        if not self.labelled:
            raise UserError(f"{self.dataset.train().name}: every pixel of its masks is {self.dataset.ignore} (ignore).")
        options = self.options
        generator = torch.Generator().manual_seed(0)
        batches = self.cache.batches(options.images, generator, self.device)
        width = sum(len(norm.sums) for norm in self.norms if norm.count)
        heads = LinearHeads(width, self.classes, options.rates).to(self.device)

        def loss() -> Tensor:
            features, masks = next(batches)
            places, labels = draw_pixels(masks, options.pixels, generator)
            logits = heads(self._inputs(features, places)).flatten(0, 1)  # [B * P, R, K]
            target = labels.flatten().long().to(self.device)
            targets = target[:, None].expand(-1, len(heads.rates))
            total = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="sum")
            return total / (target != IGNORED).sum().clamp(min=1)  # the sum of the heads' mean losses

        optimise(heads.groups(), options.rates, loss, steps=options.steps)
        return heads

    def _inputs(self, features: list[Tensor], places: Tensor | None = None) -> Tensor:
        """Standardised features, CLS beside patches: at `places` `[B, P, D]`, else of every patch `[B, h, w, D]`."""
        patches, *cls = [norm(feature) for norm, feature in zip(self.norms, features)]
        x = patches if places is None else interpolate(patches, places)
        shape = (len(x), *[1] * (x.dim() - 2), -1)
        return torch.cat([x, *(token.reshape(shape).expand(*x.shape[:-1], -1) for token in cls)], -1)

    def read(self, batch: Batch) -> None:
        if self.heads is None:
            self.heads = self._train()
        self.images += len(batch.examples)
        scores = self.heads(self._inputs(self._features(batch))).permute(3, 0, 4, 1, 2)  # [R, B, K, h, w]
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for at, example in enumerate(batch.examples):
            assert example.mask is not None
            groups[example.mask.shape].append(at)
        for size, group in groups.items():
            for some in together(group, size, CLASSES_AT_A_TIME):
                examples = [batch.examples[at] for at in some]
                for rate, score in enumerate(scores):
                    labels = argmax_raised(score[some], size, CLASSES_AT_A_TIME).cpu()
                    for example, label in zip(examples, labels):
                        self._count(rate, example, label)

    def _count(self, rate: int, example: Example, label: Tensor) -> None:
        truth = torch.from_numpy(example.mask).long()
        matrix = confusion(truth, label, self.classes, self.dataset.ignore)
        self.matrices[rate] += matrix
        self.overlaps[rate][example.index] = overlaps(matrix)

    def outcome(self) -> Outcome:
        if self.matrices[0].sum() == 0:
            raise UserError(f"{self.dataset.name}: every pixel of its masks is {self.dataset.ignore} (ignore).")
        scores = [mean_iou(matrix) for matrix in self.matrices]
        best = scores.index(max(scores))
        matrix = self.matrices[best]
        metrics = {
            "miou": scores[best],
            "pixel_accuracy": accuracy(matrix),
            "mean_class_accuracy": mean_class_accuracy(matrix),
            "miou_chance": chance_miou(matrix),
            **{f"miou_lr{rate:g}": score for rate, score in zip(self.options.rates, scores)},
        }
        counts = {
            "images": self.images,
            "train_images": self.train_images,
            "classes": self.classes,
            "classes_present": int((matrix.sum(1) > 0).sum()),
            "pixels": int(matrix.sum()),
        }
        iou = class_iou(matrix).tolist()
        names = self.dataset.class_names
        details = {
            "best_lr": self.options.rates[best],
            "iou": {name: None if math.isnan(value) else value for name, value in zip(names, iou)},
        }
        per_image = {"miou": iou_samples(self.overlaps[best])}
        return Outcome(metrics, self.protocol(ignore=self.dataset.ignore), counts, details, per_image)


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """Linear segmentation of `dataset` with `LinearSegmentationOptions`; the protocol is in the module's docstring."""
    return run_task(LinearSegmentation, model, dataset, **options)
