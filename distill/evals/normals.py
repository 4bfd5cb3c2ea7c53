"""Surface normals from frozen features with a DPT decoder.

Protocol (TIPSv2's: a DPT decoder, angular RMSE; the training that it does not describe is ours):

- Images: short side to `size`, aspect kept (`fit`), sides rounded up to the patch; [0, 1]. No crops or flips: features
  are computed once and kept in float16, `memory` GB of them in memory, the rest in temporary files.
- `distill.evals.dpt` on four taps gives 3 channels at 8 times the patch grid; made unit length, raised bilinearly
  (align_corners=False) to the label's size, made unit length again.
- Training: mean of 1 - cosine at `points` random pixels of each of `images` images a step, those without a normal left
  out; AdamW at the peak rate `lr`, weight decay 1e-4, linear warm-up and decay, `steps` steps. Seeded.
- `weights=FILE` reads a released head instead: nothing is trained, no train split needed. Its axes must be the data's
  (right, up, towards the viewer).
- Scored are pixels with a normal. Root of the mean squared angle and mean angle in degrees, and the shares of pixels
  below 11.25, 22.5 and 30 degrees are computed for each image and averaged over images. `rmse_constant` answers the
  train split's mean normal everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError
from distill.evals.cache import draw_pixels, interpolate
from distill.evals.datasets.base import NORMALS, EvalDataset
from distill.evals.depth_metrics import NORMAL_METRICS, metric_samples, normal_metrics
from distill.evals.dpt_probe import DptProbe, check_head
from distill.evals.engine import run_task
from distill.evals.features import FITS, Batch, Encoder, Needs
from distill.evals.results import TaskResult
from distill.evals.task import Context, Outcome, Task, TaskOptions, above_zero, at_least, choice, require_layers

OUTPUTS = 3  # of the head: right, up, towards the viewer


@dataclass
class NormalsOptions(TaskOptions):
    weights: str | None = None  # a released DPT head: no training
    channels: int | None = None  # of its maps (None: 256, or a third of the model's width where that is less)
    lr: float = 1e-3  # peak learning rate
    steps: int = 200
    images: int = 8  # a step
    points: int = 1024  # pixels of each image a step
    fit: str = "keep"  # how images are resized: keep or square
    memory: float = 4.0  # gigabytes of features and labels kept in memory

    def resolve(self, dataset: EvalDataset) -> None:
        choice("normals", "fit", self.fit, FITS)
        above_zero("normals", "lr", self.lr)
        above_zero("normals", "memory", self.memory)
        for name in ("steps", "images", "points"):
            at_least("normals", name, getattr(self, name), 1)
        if self.channels is not None:
            at_least("normals", "channels", self.channels, 1)


class SurfaceNormals(Task):
    name = "normals"
    requires = (NORMALS,)
    headline = ("rmse", "share_11", "share_22", "share_30", "rmse_constant")
    units = {"rmse": "°", "mean_angle": "°", "rmse_constant": "°"}  # noqa: RUF012
    Options = NormalsOptions
    files = ("weights",)
    resources = ("memory",)

    def __init__(self, context: Context, options: NormalsOptions):
        super().__init__(context, options)
        self.probe = DptProbe(self.name, context.model, options, OUTPUTS)
        self.scores: dict[int, Tensor] = {}  # by image, [5]
        self.constant: dict[int, Tensor] = {}
        self.total = torch.zeros(3, dtype=torch.float64)  # of the train split's normals
        self.labelled = self.train_images = self.pixels = self.without = 0

    @classmethod
    def fits(cls, options: NormalsOptions) -> bool:
        return options.weights is None

    @classmethod
    def check_model(cls, model: Any, options: NormalsOptions) -> None:
        require_layers(cls.name, model)
        check_head(cls.name, model, options.weights, OUTPUTS)

    @property
    def needs(self) -> Needs:
        layers = tuple(sorted(set(self.probe.blocks)))
        return Needs(encode=False, layers=layers, normals=True, fit=self.options.fit)

    def fit(self, batch: Batch) -> None:
        truth = [torch.from_numpy(example.normals) for example in batch.examples]
        for normals in truth:
            self.total += normals.double().sum((0, 1))
            self.labelled += int(normals.any(-1).sum())
        self.probe.add(batch, truth)
        self.train_images += len(truth)

    def _loss(self, raw: Tensor, truth: list[Tensor], generator: torch.Generator) -> Tensor:
        places, normals = draw_pixels(truth, self.options.points, generator)
        normals = normals.to(raw.device)  # [B, P, 3]
        found = interpolate(F.normalize(raw, dim=1).permute(0, 2, 3, 1), places)  # [B, P, 3]
        keep = normals.any(-1)
        lost = (1 - F.cosine_similarity(found, normals, dim=-1)) * keep
        return lost.sum() / keep.sum().clamp(min=1)

    def read(self, batch: Batch) -> None:
        if self.probe.head is None:
            if not self.labelled:
                raise UserError(f"{self.context.dataset.train().name}: no pixel has a normal to fit on.")
            self.probe.train(self._loss, self.options.lr)
        for raw, example in zip(F.normalize(self.probe.raw(batch), dim=1), batch.examples):
            truth = torch.from_numpy(example.normals)
            valid = truth.any(-1)  # [H, W]
            if not valid.any():
                self.without += 1
                continue
            raised = F.interpolate(raw[None], size=valid.shape, mode="bilinear", align_corners=False)[0]
            found = F.normalize(raised, dim=0).permute(1, 2, 0).cpu()  # [H, W, 3]
            self.pixels += int(valid.sum())
            self.scores[example.index] = normal_metrics(found[valid], truth[valid])
            if self.train_images:
                mean = F.normalize(self.total, dim=0).expand(int(valid.sum()), 3)
                self.constant[example.index] = normal_metrics(mean, truth[valid])

    def outcome(self) -> Outcome:
        if not self.scores:
            raise UserError(f"{self.context.dataset.name}: no pixel has a normal to score.")
        metrics = dict(zip(NORMAL_METRICS, torch.stack(list(self.scores.values())).mean(0).tolist()))
        counts = {"images": len(self.scores), "train_images": self.train_images, "pixels": self.pixels}
        if self.constant:
            metrics["rmse_constant"] = float(torch.stack(list(self.constant.values())).mean(0)[0])
        if self.without:
            counts["images_without_normals"] = self.without
        per_image = metric_samples(NORMAL_METRICS, self.scores, self.constant)
        return Outcome(metrics, self.protocol(), counts, {}, per_image)


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """Surface normals of `dataset` with `NormalsOptions`; the protocol is in the module's docstring."""
    return run_task(SurfaceNormals, model, dataset, **options)
