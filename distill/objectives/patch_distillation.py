"""Patch distillation: the student's patch tokens, from a corrupted view, must match the teacher's from the whole image.

`tokens: masked` is iBOT (Eq. 2 of the paper), `all` is iBOT++ (Eq. 3: the same sum without the factor m_i), `visible`
the remaining third.

**The mean.** The paper writes a sum over tokens; here the loss is ONE UNIFORM MEAN over all supervised tokens of the
global batch: every supervised token of every image on every rank has the same weight `1 / (number of supervised
tokens)`. That is neither of two look-alikes:
- `mean(masked) + mean(visible)` weights a masked token by 1/#masked and a visible one by 1/#visible. At 75 % masking
  a visible token then counts three times as much as a masked one, and the loss is twice as large.
- DINOv2's mean per image, then over images, weights a token by 1/#supervised *of its image*: an image with few
  supervised tokens counts as much as one with many. It is equal to ours only when every image has the same number.

With gradient accumulation the mean is taken per micro-batch, and the micro-batches are averaged: the same thing,
because the number of masked patches is the same for every image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError, unknown
from distill.objectives.cross_entropy import prototype_cross_entropy
from distill.objectives.distributed import all_reduce_sum, world_size
from distill.objectives.precision import full
from distill.objectives.prototypes import TokenTargets

TOKENS = ("masked", "visible", "all")


class PatchLoss(NamedTuple):
    """`total` is minimised; the parts are for the log and are never summed into it."""

    total: Tensor  # scalar with gradient: this rank's share, whose mean over ranks is the uniform mean
    masked: Tensor  # scalar: mean over the masked tokens of all ranks, detached; NaN if there are none
    visible: Tensor  # scalar: mean over the visible tokens of all ranks, detached; NaN if there are none


def prototype_patch_loss(
    student: Tensor,
    directions: Tensor,
    targets: TokenTargets,
    mask: Tensor,
    tokens: str,
    temperature: float,
    chunk: int | None = None,
    masked: int | None = None,
) -> PatchLoss:
    """Cross-entropy of each patch to the teacher's distribution over prototypes, as a uniform mean (see the module).

    `student` `[B, N, d]`: the student's bottleneck vectors from the corrupted view; `directions` `[K, d]`: its
    prototypes; `targets`: distributions of the same B x N patches of the clean view; `mask` bool `[B, N]`, True =
    masked; `tokens`: masked | visible | all; `temperature`: the student's; `chunk`: tokens at a time (None: by
    memory); `masked`: how many tokens the mask hides (None: counted, for which a GPU is waited for). Both parts are
    always measured; tokens that are not supervised take no part in the gradient. Raises UserError for another `tokens`,
    or when no token of the global batch is supervised.
    """
    rows = supervised(mask, tokens, masked)
    flat = student.flatten(0, 1)  # [B*N, d]
    if rows is None:
        sum_, each = prototype_cross_entropy(flat, directions, targets, temperature, chunk)
        return _uniform_mean(sum_, mask.numel(), each, mask, tokens)
    sum_, own = prototype_cross_entropy(flat[rows.own], directions, targets.select(rows.own), temperature, chunk)
    with torch.no_grad():
        other = targets.select(rows.other)
        unseen = prototype_cross_entropy(flat[rows.other], directions, other, temperature, chunk).tokens
    each = own.new_empty(len(flat))
    each[rows.own], each[rows.other] = own, unseen
    return _uniform_mean(sum_, len(own), each, mask, tokens)


def feature_patch_loss(
    student: Tensor, target: Tensor, mask: Tensor, tokens: str, masked: int | None = None
) -> PatchLoss:
    """Regression of the teacher's patch features, `feature_distance` as a uniform mean (see the module).

    `student` `[B, N, D]`: a linear projection of the student's tokens. `target` `[B, N, D]`: the teacher's, normalised
    by `FeatureNorm` or `PhiSNorm`, so that a few large channels do not take over. `mask`, `tokens`, `masked` and errors
    as above.
    """
    each = feature_distance(student, target).flatten()  # [B*N]
    rows = supervised(mask, tokens, masked)
    own = each if rows is None else each[rows.own]
    return _uniform_mean(own.sum(), own.numel(), each.detach(), mask, tokens)


def feature_distance(student: Tensor, target: Tensor) -> Tensor:
    """`(1 - cos(x, y)) + mean over channels of smooth_l1(x, y)` of each token, in fp32; no gradient to `target`.

    The direction, which segmentation and retrieval read, and the scale, which cosine alone leaves free; the pair used
    to distil several teachers (arXiv 2312.06709, 2408.05088). `student`, `target` `[..., D]` -> `[...]`.
    """
    with torch.autocast(student.device.type, enabled=False):
        x, y = full(student), full(target.detach())
        return 1 - F.cosine_similarity(x, y, dim=-1) + F.smooth_l1_loss(x, y, reduction="none").mean(dim=-1)


class FeatureNorm(nn.Module):
    """Standardises teacher features per channel, `(x - mean) / sqrt(var + eps)`, with running statistics.

    Buffers `mean`, `var` `[D]` and `ticks` are in the state dict. They move only when `tick` is called, once per
    optimiser step, by what `accumulate` has seen; until the first tick, what is pending serves.
    """

    mean: Tensor
    var: Tensor
    ticks: Tensor
    pending: Tensor
    eps = 1e-6

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.register_buffer("ticks", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pending", torch.zeros(2 * width + 1, dtype=torch.float64), persistent=False)
        self.waiting = False  # something was accumulated since the last tick

    @torch.no_grad()
    def accumulate(self, features: Tensor) -> None:
        """Adds a micro-batch of features `[..., D]`, on all ranks together. fp64, so that large means do not cancel."""
        x = features.detach().flatten(0, -2).double()  # [T, D]
        self.pending += all_reduce_sum(torch.cat([x.sum(0), x.square().sum(0), x.new_full((1,), len(x))]))
        self.waiting = True

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Standardised features, same shape, fp32, no gradient."""
        mean, var = self.mean, self.var
        if self.waiting:
            fresh_mean, fresh_var = self._fresh()
            first = self.ticks == 0
            mean, var = torch.where(first, fresh_mean, mean), torch.where(first, fresh_var, var)
        return (full(features.detach()) - mean) * (var + self.eps).rsqrt()

    @torch.no_grad()
    def tick(self, momentum: float) -> None:
        """Moves the statistics towards what was accumulated (the first time: onto it), if anything was."""
        if not self.waiting:
            return
        weight = torch.where(self.ticks == 0, 1.0, 1 - momentum)
        for running, fresh in zip((self.mean, self.var), self._fresh()):
            running.lerp_(fresh, weight)
        self.ticks += 1
        self.pending.zero_()
        self.waiting = False

    def _fresh(self) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance `[D]` of what is pending."""
        mean, square = (self.pending[:-1] / self.pending[-1]).chunk(2)
        return mean.to(self.mean.dtype), (square - mean.square()).clamp_min(0).to(self.var.dtype)


class Rows(NamedTuple):
    """Which tokens are supervised and which are not, in raster order over the batch: int64, B*N together."""

    own: Tensor
    other: Tensor


def supervised(mask: Tensor, tokens: str, masked: int | None = None) -> Rows | None:
    """The rows that are supervised under `mask` `[B, N]`, or None for all of them.

    `masked`: how many tokens the mask hides, if known: then the shapes are too, and no GPU is waited for, as indexing
    with a mask would. Raises UserError for an unknown word.
    """
    if tokens not in TOKENS:
        raise unknown("objective.patch.tokens", tokens, TOKENS)
    if tokens == "all":
        return None
    if masked is None:
        masked = int(mask.sum())
    order = torch.argsort((~mask).flatten().to(torch.uint8), stable=True)  # [B*N] the masked ones first
    hidden, visible = order[:masked], order[masked:]
    return Rows(hidden, visible) if tokens == "masked" else Rows(visible, hidden)


def _uniform_mean(sum_: Tensor, own: int, each: Tensor, mask: Tensor, tokens: str) -> PatchLoss:
    """The loss from the sum over this rank's `own` supervised tokens, and every token's detached loss `each` `[B*N]`.

    Ranks may hold different numbers of supervised tokens. The global mean is (sum over ranks of sums) / (sum of
    counts); gradients are averaged over ranks, so each rank returns `ranks * its sum / global count`.
    """
    weight = torch.stack([mask.flatten(), ~mask.flatten()]).to(each.dtype)  # [2, B*N] masked, visible
    with torch.autocast(each.device.type, enabled=False):  # it would round the sums
        local = torch.cat([weight @ each, weight.sum(dim=1)])  # [4] sums, then counts
    sum_masked, sum_visible, masked, visible = all_reduce_sum(local).unbind()
    count = {"masked": masked, "visible": visible, "all": masked + visible}[tokens]
    if own == 0 and count.item() == 0:  # the first test needs no wait for the device
        fix = "Set mask.ratio above 0, or objective.patch.tokens to all." if tokens == "masked" else "Lower mask.ratio."
        raise UserError(f"objective.patch.tokens is '{tokens}', but the batch has no {tokens} token. {fix}")
    return PatchLoss(sum_ * (world_size() / count), sum_masked / masked, sum_visible / visible)
