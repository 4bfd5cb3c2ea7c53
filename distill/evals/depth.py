"""Monocular depth from frozen features: a linear layer, or a DPT decoder.

Protocol (DINOv2's "lin. 1" and TIPSv2's published decoder; details where those are silent are ours):

- Images: short side to `size`, aspect kept (`fit`), sides rounded up to the patch; [0, 1]. No crops, flips or colour
  changes: features are computed once and kept in float16, `memory` GB of them in memory, the rest in temporary files.
- Depth is the expectation of `bins` values spread evenly over [`min`, `max`] (256 in [0.001, 10] m; the scenes end at 8
  image sides) under ReLU(logits) + eps, divided by their sum; eps is 0.1 (linear) or 0.001 (DPT).
- `head=linear`: final patch tokens, with `cls=with` CLS-1 beside each, standardised over the train split; a linear
  layer; logits raised bilinearly to 4 times the patch grid, depth there raised bilinearly to the label's size. Trained
  at `points` random cells of the raised grid of each image; a cell's truth is the pixel at its centre.
- `head=dpt`: `distill.evals.dpt` on four taps; depth at 8 times the patch grid raised bilinearly. Trained at `points`
  random pixels of each image. `weights=FILE` reads a released head instead: nothing is trained, no train split needed.
- Loss: sqrt(var(g) + 0.15 mean(g)^2) with g = log(predicted) - log(true) over the batch's valid points (Eigen et al.
  2014; the "sigloss" of DINOv2, without its gradient term). AdamW, weight decay 1e-4, linear warm-up and decay,
  `images` images a step, `steps` steps (the published probes: 38,400 and more). Seeded. All rates of `lr` train side by
  side (DPT: one).
- Scored are pixels whose true depth lies between `min` and `max`, with `crop=eigen` inside NYUv2's Eigen crop. Known
  depth outside that range is neither fitted nor scored, but counted (`pixels_out_of_range`). Probe3D, whose range on
  NAVI ends at 1 m, fits and scores what is farther too.
- RMSE (the data's unit), abs-rel and delta 1 to 3 are computed for each image and averaged over images. The numbers are
  those of the rate with the least RMSE on the evaluated split; give one rate for a number without that choice.
  `rmse_constant` answers the train split's mean depth everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError
from distill.evals.cache import DenseCache, centres, draw_pixels, interpolate
from distill.evals.datasets.base import DEPTH, EvalDataset
from distill.evals.depth_metrics import DEPTH_METRICS, depth_metrics, eigen_crop, metric_samples
from distill.evals.dpt_probe import DptProbe, check_head
from distill.evals.engine import run_task
from distill.evals.features import FITS, Batch, Encoder, Needs, device_of
from distill.evals.linear_heads import LinearHeads, Standardise, optimise
from distill.evals.results import UNIT, TaskResult
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

HEADS = ("linear", "dpt")
EPS = {"linear": 0.1, "dpt": 0.001}
RATES = {"linear": [3e-2], "dpt": [1e-3]}
POINTS = {"linear": 64, "dpt": 1024}
RAISE = 4  # the linear head's logits, relative to the patch grid
FOCUS = 0.15  # of the loss: how much a common factor in depth counts


@dataclass
class DepthOptions(TaskOptions):
    head: str = "linear"  # linear or dpt
    weights: str | None = None  # a released DPT head (implies head=dpt, and no training)
    min: float = 0.001
    max: float = 10.0
    bins: int = 256
    cls: str = "with"  # linear: CLS-1 beside each patch, with or without
    channels: int | None = None  # dpt: of its maps (None: 256, or a third of the model's width where that is less)
    lr: float | list | None = None  # peak learning rates, one or several (None: 0.03; dpt: 0.001)
    steps: int = 300
    images: int = 16  # a step
    points: int | None = None  # of each image a step (None: 64; dpt: 1024)
    crop: str = "none"  # none or eigen
    fit: str = "keep"  # how images are resized: keep or square
    memory: float = 4.0  # gigabytes of features and labels kept in memory

    def resolve(self, dataset: EvalDataset) -> None:
        if self.weights is not None:
            self.head = "dpt"
        choice("depth", "head", self.head, HEADS)
        choice("depth", "cls", self.cls, ("with", "without"))
        choice("depth", "crop", self.crop, ("none", "eigen"))
        choice("depth", "fit", self.fit, FITS)
        above_zero("depth", "min", self.min)
        above_zero("depth", "memory", self.memory)
        if self.max <= self.min:
            raise UserError(f"depth.max = {self.max}: it must be above depth.min = {self.min}.")
        at_least("depth", "bins", self.bins, 2)
        self.lr = self.rates
        if self.head == "dpt" and len(self.lr) > 1:
            raise UserError(f"depth.lr = {self.lr}: a DPT head is trained with one rate. Give one, such as 0.001.")
        self.points = POINTS[self.head] if self.points is None else self.points
        for name in ("steps", "images", "points"):
            at_least("depth", name, getattr(self, name), 1)
        if self.channels is not None:
            at_least("depth", "channels", self.channels, 1)

    @property
    def rates(self) -> list[float]:
        return rates_of("depth", "lr", RATES[self.head] if self.lr is None else self.lr)


class Depth(Task):
    name = "depth"
    requires = (DEPTH,)
    headline = ("rmse", "abs_rel", "delta1", "rmse_constant")
    units = {"rmse": "m", "rmse_constant": "m"}  # noqa: RUF012
    Options = DepthOptions
    files = ("weights",)
    resources = ("memory",)

    def __init__(self, context: Context, options: DepthOptions):
        super().__init__(context, options)
        kind = LinearDepth if options.head == "linear" else DptDepth
        self.probe: LinearDepth | DptDepth = kind(context.model, options)
        self.scores: list[dict[int, Tensor]] = [{} for _ in options.rates]  # by rate and image, [5]
        self.constant: dict[int, Tensor] = {}
        self.total = torch.zeros(2, dtype=torch.float64)  # sum and number of the train split's depths
        self.images = self.train_images = self.pixels = self.without = self.outside = 0
        self.ready = options.weights is not None

    @classmethod
    def fits(cls, options: DepthOptions) -> bool:
        return options.weights is None

    @classmethod
    def check_model(cls, model: Any, options: DepthOptions) -> None:
        if options.head == "dpt":
            require_layers(cls.name, model)
            check_head(cls.name, model, options.weights, options.bins)

    @property
    def needs(self) -> Needs:
        layers = tuple(self.probe.blocks)
        return Needs(encode=not layers, layers=layers, depth=True, fit=self.options.fit)

    def _truth(self, batch: Batch) -> list[Tensor]:
        """Depth `[H, W]` of each image, 0 where it is not known or out of range."""
        maps = [torch.from_numpy(example.depth) for example in batch.examples]
        return [depth.where((depth > self.options.min) & (depth < self.options.max), 0) for depth in maps]

    def fit(self, batch: Batch) -> None:
        truth = self._truth(batch)
        self.total += torch.stack([torch.stack([d.double().sum(), (d > 0).sum().double()]) for d in truth]).sum(0)
        self.probe.add(batch, truth)
        self.train_images += len(truth)

    def read(self, batch: Batch) -> None:
        if not self.ready:
            if not self.total[1]:
                raise UserError(self._none(self.context.dataset.train().name))
            self.probe.train()
            self.ready = True
        for example, maps, truth in zip(
            batch.examples, self.probe.predict(batch), self._truth(batch)
        ):  # maps [R, h, w]
            stored = torch.from_numpy(example.depth)
            known = stored.isfinite() & (stored > 0)
            if self.options.crop == "eigen":
                known &= eigen_crop(*truth.shape)
            valid = known & (truth > 0)
            self.outside += int((known & ~valid).sum())
            if not valid.any():
                self.without += 1
                continue
            self.images += 1
            self.pixels += int(valid.sum())
            raised = F.interpolate(maps[:, None], size=truth.shape, mode="bilinear", align_corners=False)[:, 0].cpu()
            for scores, depth in zip(self.scores, raised):
                scores[example.index] = depth_metrics(depth[valid], truth[valid])
            if self.train_images:
                mean = (self.total[0] / self.total[1]).expand(int(valid.sum()))
                self.constant[example.index] = depth_metrics(mean, truth[valid])

    def outcome(self) -> Outcome:
        options = self.options
        if not self.images:
            raise UserError(self._none(self.context.dataset.name))
        means = [
            torch.stack(list(scores.values())).mean(0).tolist() for scores in self.scores
        ]  # by rate, DEPTH_METRICS
        best = min(range(len(means)), key=lambda at: means[at][0])
        metrics = dict(zip(DEPTH_METRICS, means[best]))
        metrics |= {f"rmse_lr{rate:g}": mean[0] for rate, mean in zip(options.rates, means)}
        counts = {"images": self.images, "train_images": self.train_images, "pixels": self.pixels}
        if self.constant:
            metrics["rmse_constant"] = float(torch.stack(list(self.constant.values())).mean(0)[0])
        if self.without:
            counts["images_without_depth"] = self.without
        if self.outside:
            counts["pixels_out_of_range"] = self.outside
        details = {"best_lr": options.rates[best]}
        per_image = metric_samples(DEPTH_METRICS, self.scores[best], self.constant)
        unit = self.context.dataset.depth_unit
        own = {} if unit == self.units["rmse"] else {UNIT: unit}
        return Outcome(metrics, self.protocol(eps=EPS[options.head], **own), counts, details, per_image)

    def _none(self, name: str) -> str:
        return f"{name}: no pixel has a depth between {self.options.min:g} and {self.options.max:g}. Set depth.max."


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """Depth estimation on `dataset` with `DepthOptions`; the protocol is in the module's docstring."""
    return run_task(Depth, model, dataset, **options)


def expected_depth(logits: Tensor, values: Tensor, eps: float) -> Tensor:
    """Logits `[..., K]` and the depths of the bins `[K]` -> expected depth `[...]`."""
    shares = logits.relu() + eps
    return (shares @ values) / shares.sum(-1)


def log_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """sqrt(var(g) + 0.15 mean(g)^2), g = log(predicted / truth), over n points: predicted `[..., n]`, truth `[n]`."""
    g = predicted.log() - truth.log()
    return (g.var(-1, correction=0) + FOCUS * g.mean(-1).square()).clamp(min=1e-12).sqrt()


class LinearDepth:
    """A linear layer for each learning rate."""

    blocks = ()  # reads the last block's tokens

    def __init__(self, model: Any, options: DepthOptions):
        self.options, self.device = options, device_of(model)
        self.points = options.points or POINTS["linear"]
        self.cache = DenseCache(options.memory, "depth.memory")
        self.norms = [Standardise(), Standardise()]  # of patches and CLS
        self.values = torch.linspace(options.min, options.max, options.bins, device=self.device)
        self.heads: LinearHeads | None = None

    def add(self, batch: Batch, truth: list[Tensor]) -> None:
        features = self._features(batch)
        for norm, feature in zip(self.norms, features):
            norm.add(feature)
        self.cache.add(features, truth)

    def _features(self, batch: Batch) -> list[Tensor]:
        assert batch.cls is not None and batch.patches is not None
        return [batch.patches, batch.cls[:, 0]] if self.options.cls == "with" else [batch.patches]

    def train(self) -> None:
        options = self.options
        generator = torch.Generator().manual_seed(0)
        batches = self.cache.batches(options.images, generator, self.device)
        width = sum(len(norm.sums) for norm in self.norms if norm.count)
        heads = LinearHeads(width, options.bins, options.rates).to(self.device)

        def loss() -> Tensor:
            features, truth = next(batches)
            places, depth = draw_cells(truth, features[0].shape[1:3], self.points, generator)
            depth = depth.flatten().to(self.device)  # [B * P]
            keep = depth > 0
            if not keep.any():
                return sum(weight.sum() for weight in heads.weights) * 0
            patches, *cls = [norm(feature) for norm, feature in zip(self.norms, features)]
            x = interpolate(patches, places)  # [B, P, D]
            x = torch.cat([x, *(token[:, None].expand(-1, x.shape[1], -1) for token in cls)], -1).flatten(0, 1)
            predicted = expected_depth(heads(x[keep]), self.values, EPS["linear"])  # [n, R]
            return log_error(predicted.T, depth[keep]).sum()

        optimise(heads.groups(), options.rates, loss, steps=options.steps)
        self.heads = heads

    def predict(self, batch: Batch) -> list[Tensor]:
        """Depth `[R, 4h, 4w]` of each image."""
        assert self.heads is not None
        patches, *cls = [norm(feature) for norm, feature in zip(self.norms, self._features(batch))]
        maps = []
        for at in range(len(patches)):  # one image at a time: the raised logits are large
            x = patches[at]  # [h, w, D]
            x = torch.cat([x, *(token[at].expand(*x.shape[:-1], -1) for token in cls)], -1)
            logits = self.heads(x).permute(2, 3, 0, 1)  # [R, K, h, w]
            raised = F.interpolate(logits, scale_factor=RAISE, mode="bilinear", align_corners=False)
            maps.append(expected_depth(raised.permute(0, 2, 3, 1), self.values, EPS["linear"]))
        return maps


def draw_cells(
    truth: list[Tensor], grid: tuple[int, ...], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random cells of the raised grid of each of B images: places `[B, P, 2]`, depth at the cells' centres `[B, P]`."""
    height, width = RAISE * grid[0], RAISE * grid[1]
    places, depths = [], []
    for depth in truth:
        rows = torch.randint(height, (count,), generator=generator)
        columns = torch.randint(width, (count,), generator=generator)
        places.append(centres(rows, columns, height, width))
        y = ((2 * rows + 1) * depth.shape[0]) // (2 * height)
        x = ((2 * columns + 1) * depth.shape[1]) // (2 * width)
        depths.append(depth[y, x])
    return torch.stack(places), torch.stack(depths)


class DptDepth:
    """A DPT decoder, trained or released."""

    def __init__(self, model: Any, options: DepthOptions):
        self.options = options
        self.points = options.points or POINTS["dpt"]
        self.probe = DptProbe("depth", model, options, options.bins)
        self.blocks = tuple(sorted(set(self.probe.blocks)))
        self.values = torch.linspace(options.min, options.max, options.bins, device=device_of(model))

    def add(self, batch: Batch, truth: list[Tensor]) -> None:
        self.probe.add(batch, truth)

    def train(self) -> None:
        self.probe.train(self._loss, self.options.rates[0])

    def _loss(self, raw: Tensor, truth: list[Tensor], generator: torch.Generator) -> Tensor:
        places, depth = draw_pixels(truth, self.points, generator)
        depth = depth.to(raw.device)  # [B, P]
        keep = depth > 0
        if not keep.any():
            return raw.sum() * 0
        found = interpolate(self._depth(raw)[..., None], places)[..., 0]  # [B, P]
        return log_error(found[keep], depth[keep])

    def _depth(self, raw: Tensor) -> Tensor:  # [B, K, h, w] -> [B, h, w]
        return expected_depth(raw.permute(0, 2, 3, 1), self.values, EPS["dpt"])

    def predict(self, batch: Batch) -> list[Tensor]:
        """Depth `[1, 8h, 8w]` of each image."""
        return list(self.probe.raw(batch, self._depth)[:, None])
