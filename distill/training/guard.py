"""Stops a run that has diverged or collapsed, and names the term that did it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.config.schema import GuardConfig
from distill.errors import UserError
from distill.objectives.distributed import all_gather_with_grad, all_reduce_mean
from distill.objectives.prototypes import PrototypeTargets, ReadyTargets
from distill.training.distiller import StepOutput

ADVICE = {
    "contrastive": "lower optim.lr, raise objective.contrastive.min_temperature, or set train.precision=fp32",
    "cls": "lower optim.lr, raise objective.cls.teacher_temperature, or set train.precision=fp32",
    "patch": "lower optim.lr, raise objective.patch.teacher_temperature.end, or set train.precision=fp32",
    "gradient": "lower optim.lr, lower optim.clip, or set train.precision=fp32",
    "patch_entropy": "raise objective.patch.teacher_temperature.end, or set objective.patch.balance=sinkhorn",
    "cls_entropy": "raise objective.cls.teacher_temperature, or set objective.cls.balance=sinkhorn",
    "rank": "lower optim.lr, raise objective.contrastive.weight, or use teacher.mode=ema_head or ema",
}
SAMPLE = 4096  # patches whose targets are looked at
LEAST = 4  # images that say anything about collapse


class Collapse(UserError):
    """The run cannot go on: the message names the term, what was seen and what to try. Checkpoints stay."""


@torch.no_grad()
def diagnose(output: StepOutput) -> dict[str, Tensor]:
    """Signs of collapse in one batch, by name; a sign whose loss is off is left out.

    `patch_entropy`, `cls_entropy`: entropy of the mean prototype use of the teacher's targets, as a share of log K (1:
    all prototypes used alike, 0: one), over at most SAMPLE patches of a rank. `rank`: effective rank of the student's
    CLS-1. The last two are of all ranks' images, and left out where these are fewer than LEAST: b centred rows have no
    rank above b - 1, and one image's sharp target uses one prototype. Collective.
    """
    rows = all_gather_with_grad(output.clean.cls[:, 0].contiguous())  # [ranks * b, D]
    enough = len(rows) >= LEAST
    signs = {"rank": effective_rank(rows)} if enough else {}
    if isinstance(output.targets.patch, PrototypeTargets | ReadyTargets):
        signs["patch_entropy"] = mean_use_entropy(output.targets.patch.chunk(slice(SAMPLE)))
    if isinstance(output.targets.cls, Tensor) and enough:
        signs["cls_entropy"] = use_entropy(all_reduce_mean(output.targets.cls.float().mean(0)))
    return signs


def mean_use_entropy(probs: Tensor) -> Tensor:
    """Entropy of the mean of `[T, K]` distributions over log K."""
    return use_entropy(probs.float().mean(0))


def use_entropy(use: Tensor) -> Tensor:
    """Entropy of one `[K]` distribution over log K."""
    return -(use * use.clamp_min(1e-12).log()).sum() / math.log(use.numel())


def effective_rank(features: Tensor) -> Tensor:
    """exp(entropy of the normalised singular values) of `[B, D]` centred features (RankMe, arXiv 2210.02885).

    Identical rows give 1.
    """
    centred = features.float() - features.float().mean(0)
    values = torch.linalg.svdvals(centred)
    total = values.sum().clamp_min(features.float().norm() * 1e-6)  # rows alike up to rounding count as identical
    share = values / total
    return torch.exp(-(share * share.clamp_min(1e-12).log()).sum())


def over_ranks(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over ranks, so that every rank comes to the same verdict."""
    if not values:
        return {}
    return dict(zip(values, all_reduce_mean(torch.stack([v.float() for v in values.values()])).unbind()))


@dataclass
class Guard:
    """Watches losses every step and signs of collapse every `cfg.every` steps; state goes into the checkpoint."""

    cfg: GuardConfig
    strikes: dict[str, int] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)  # sums of what was watched since the last check

    def watch(self, parts: dict[str, Tensor], norms: dict[str, Tensor]) -> None:
        """Takes in the losses of a micro-batch by name, or gradient norms by what was clipped; reads no value.

        Parts that are no loss of their own (`patch_visible`) may be NaN and are passed over.
        """
        named = {name: value for name, value in parts.items() if name.rpartition("/")[2] in ADVICE}
        for name, value in (named | {f"{whose}/gradient": norm for whose, norm in norms.items()}).items():
            self.seen[name] = self.seen.get(name, 0) + value.detach().float()

    def check_finite(self, step: int) -> None:
        """Raises Collapse when anything watched since the last check was NaN or infinite on any rank. Collective.

        Call it before an optimiser step or before weights are kept.
        """
        seen, self.seen = self.seen, {}
        for name, value in over_ranks(seen).items():
            if not math.isfinite(float(value)):
                whose, _, term = name.rpartition("/")
                what = f"the gradient norm of {whose}" if term == "gradient" else f"{name} loss"
                raise Collapse(f"Step {step}: {what} is {float(value)}. Try: {ADVICE[term]}.")

    def check_collapse(self, signs: dict[str, Tensor], step: int) -> None:
        """Raises Collapse when the same sign has been below its limit `cfg.patience` checks in a row."""
        for name, value in signs.items():
            limit = self.cfg.min_rank if name == "rank" else self.cfg.min_entropy
            low = not float(value) >= limit
            self.strikes[name] = self.strikes.get(name, 0) + 1 if low else 0
            if self.strikes[name] >= self.cfg.patience:
                raise Collapse(
                    f"Step {step}: collapsed: {name} is {float(value):.3g}, below {limit:.3g} for "
                    f"{self.strikes[name]} checks in a row. Try: {ADVICE[name]}."
                )
