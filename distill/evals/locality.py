"""What a patch token tells of: its own place, or the whole image.

A token that describes its own patch is alike wherever the patch's class is, and shares nothing with tokens of other
classes in its image. One that describes the whole image (the paper holds that supervising masked tokens alone turns
late layers into such global decoders) is alike all over its image. Two numbers say which, from variances alone: nothing
is fitted and no text is needed.

Protocol: all labelled patches of the dataset, a patch's class being that of the pixel at its centre; tokens brought to
unit length, as zero-shot segmentation compares them.

- `class_share`: share of the tokens' variance that lies between classes, adjusted for their number (epsilon squared: 0
  in expectation where tokens know nothing of classes, 1 where they know nothing else).
- `global_share`: what is left of each token without the mean of its class correlates this much, over all pairs of
  patches of one image but different classes: 0 where they share nothing, 1 where it is the same all over an image.
  Pairs of one class do not count: they also share the look of one instance.

Both for final tokens and the value path (`paths`: both, or one), and for the patch's pixels (`_raw`), which share the
light of their image. A share is left out where there is nothing to compare: one class only, or tokens all alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError
from distill.evals.datasets.base import MASKS, EvalDataset
from distill.evals.engine import run_task
from distill.evals.features import PATHS, Batch, Encoder, Needs
from distill.evals.linear_patch import centre_class
from distill.evals.results import TaskResult
from distill.evals.task import Context, Outcome, Task, TaskOptions, choice, require_values


@dataclass
class LocalityOptions(TaskOptions):
    paths: str = "both"  # which patch features: final, value or both

    def resolve(self, dataset: EvalDataset) -> None:
        choice("locality", "paths", self.paths, tuple(PATHS))


class Sums:
    """Sums of the tokens of every class in every image: all that the two shares need. float64, on the CPU."""

    def __init__(self, classes: int):
        self.classes = classes
        self.squares = 0.0
        self.images: list[tuple[Tensor, Tensor, Tensor]] = []  # classes of an image [c], their patches [c], sums [c, D]

    def add(self, tokens: Tensor, labels: Tensor) -> None:
        """The labelled patches of one image: `[P, D]` and their classes `[P]`."""
        tokens = tokens.double()
        present, place, counts = labels.unique(return_inverse=True, return_counts=True)
        sums = tokens.new_zeros(len(present), tokens.shape[1]).index_add_(0, place, tokens)
        self.squares += float(tokens.square().sum())
        self.images.append((present, counts, sums))

    def shares(self) -> tuple[float, float]:
        """`class_share` and `global_share`; NaN where there is nothing to compare."""
        classes, counts, sums = (torch.cat(parts) for parts in zip(*self.images))  # a row for each image and class
        weight = sums.new_zeros(self.classes).index_add_(0, classes, counts.double())
        means = sums.new_zeros(self.classes, sums.shape[1]).index_add_(0, classes, sums) / weight.clamp(min=1)[:, None]
        patches, present = float(weight.sum()), int((weight > 0).sum())
        total = self.squares - float(sums.sum(0).square().sum()) / patches
        within = self.squares - float((weight[:, None] * means.square()).sum())
        if patches <= present or total <= 0:
            return float("nan"), float("nan")
        spread = within / (patches - present)  # mean square of a token without the mean of its class
        class_share = 1 - spread / (total / (patches - 1))

        products = pairs = 0.0
        for labels, number, summed in self.images:
            rest = summed - number[:, None] * means[labels]  # [c, D]
            products += float(rest.sum(0).square().sum() - rest.square().sum())
            pairs += float(number.sum().square() - number.square().sum())
        return class_share, products / pairs / spread if pairs and spread > 0 else float("nan")


class Locality(Task):
    name = "locality"
    requires = (MASKS,)
    headline = tuple(f"{kind}_share_{path}" for kind in ("class", "global") for path in ("final", "value", "raw"))
    Options = LocalityOptions

    def __init__(self, context: Context, options: LocalityOptions):
        super().__init__(context, options)
        self.dataset = context.dataset
        self.kinds = PATHS[options.paths]
        self.sums = {kind: Sums(len(self.dataset.class_names)) for kind in (*self.kinds, "raw")}

    @classmethod
    def check_model(cls, model: Any, options: LocalityOptions) -> None:
        if "value" in PATHS[options.paths]:
            require_values(model)

    @property
    def needs(self) -> Needs:
        return Needs(values="value" in self.kinds, final="final" in self.kinds, masks=True)

    def read(self, batch: Batch) -> None:
        features = self._features(batch)
        grid = features[self.kinds[0]].shape[1:3]
        for number, example in enumerate(batch.examples):
            mask = torch.from_numpy(example.mask).long()
            labels = centre_class(mask, (grid[0], grid[1])).flatten()  # [h*w]
            keep = labels != self.dataset.ignore
            if keep.any():
                for kind, tokens in features.items():
                    self.sums[kind].add(tokens[number].flatten(0, -2)[keep], labels[keep])

    def _features(self, batch: Batch) -> dict[str, Tensor]:
        """On the CPU: unit tokens `[B, h, w, D]` by path, and the pixels of each patch `[B, h*w, 3*patch*patch]`."""
        paths = {"final": batch.patches, "value": batch.values}
        tokens = {kind: paths[kind] for kind in self.kinds}
        patch = self.context.model.image.patch
        pixels = F.unfold(batch.images, patch, stride=patch).transpose(1, 2)
        found = {kind: F.normalize(x, dim=-1) for kind, x in tokens.items() if x is not None} | {"raw": pixels}
        return {kind: x.cpu() for kind, x in found.items()}

    def outcome(self) -> Outcome:
        images = self.sums["raw"].images
        if not images:
            raise UserError(f"{self.dataset.name}: none of its patches has a class.")
        shares = {kind: sums.shares() for kind, sums in self.sums.items()}
        both = {f"class_share_{kind}": share for kind, (share, _) in shares.items()}
        both |= {f"global_share_{kind}": share for kind, (_, share) in shares.items()}
        metrics = {name: share for name, share in both.items() if not math.isnan(share)}
        counts = {"images": len(images), "patches": sum(int(number.sum()) for _, number, _ in images)}
        return Outcome(metrics, self.protocol(ignore=self.dataset.ignore), counts, {})


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """What patch tokens share with their class and image, with `LocalityOptions`; protocol: the module's docstring."""
    return run_task(Locality, model, dataset, **options)
