"""Contrast with the captions of the whole batch when the batch comes in micro-batches (arXiv 2101.06983).

A first pass without gradient keeps only what the contrast sees of each micro-batch. The loss over all of it gives its
slope by every feature; then each micro-batch runs again with gradient and sends its slopes through. The gradients are
those of one big batch, for one more forward pass of clean images and captions. What is random in a pass is drawn again
from the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.config.schema import Config
from distill.objectives.contrastive import contrastive_loss
from distill.objectives.precision import full
from distill.views.batch import Batch


class Features(NamedTuple):
    """What the contrast of one learner sees."""

    cls: Tensor  # [b, C, D] CLS tokens of the clean view
    text: Tensor  # [b, C, D] the caption of each
    temperature: Tensor  # scalar
    bias: Tensor | None  # scalar, with the sigmoid loss

    def loss(self, kind: str) -> Tensor:
        """Mean over the CLS tokens, each with its own caption: this rank's share (see `contrastive_loss`)."""
        pairs = zip(self.cls.unbind(1), self.text.unbind(1))
        return torch.stack([contrastive_loss(i, t, self.temperature, kind, self.bias) for i, t in pairs]).mean()


class Slopes:
    """The whole batch's contrast as one micro-batch of several meets it: its value, and its slopes by the features.

    Not a dataclass: Fabric would walk into one and round every tensor in it to the run's precision.
    """

    def __init__(self, value: Tensor, by: Features):
        self.value = value  # scalar
        self.by = by

    def through(self, features: Features) -> Tensor:
        """A scalar with that value, whose mean over the micro-batches has the gradient of the whole batch's loss."""
        pairs = [(own, slope) for own, slope in zip(features, self.by) if own is not None and slope is not None]
        linear = torch.stack([(full(own) * slope).sum() for own, slope in pairs]).sum()
        return self.value + (linear - linear.detach())


def needs_features(cfg: Config) -> bool:
    """Whether a step contrasts over more than one micro-batch."""
    contrastive = cfg.objective.contrastive
    return contrastive.weight > 0 and contrastive.negatives == "global" and cfg.train.accumulate > 1


def whole_batch_slopes(micro: Sequence[Features], kind: str) -> list[Slopes]:
    """The loss over the features of all micro-batches, and its slopes cut up for each of them."""
    cls = torch.cat([f.cls for f in micro]).detach().requires_grad_()  # [A * b, C, D]
    text = torch.cat([f.text for f in micro]).detach().requires_grad_()  # [A * b, C, D]
    temperature = micro[0].temperature.detach().requires_grad_()
    bias = None if micro[0].bias is None else micro[0].bias.detach().requires_grad_()
    inputs = [cls, text, temperature] + ([] if bias is None else [bias])
    with torch.enable_grad():
        value = Features(cls, text, temperature, bias).loss(kind)
    by_cls, by_text, *by_scalars = torch.autograd.grad(value, inputs)
    by_bias = None if bias is None else by_scalars[1]
    # each micro-batch has its own features, and the loop averages over micro-batches: hence the factor
    parts = zip((len(micro) * by_cls).chunk(len(micro)), (len(micro) * by_text).chunk(len(micro)))
    return [Slopes(value.detach(), Features(c, t, by_scalars[0], by_bias)) for c, t in parts]


class Replay:
    """Seeds for the passes over each micro-batch. Afterwards random states are as if only the seeds had been drawn."""

    def __init__(self, count: int):
        self.seeds = torch.randint(2**62, (count,)).tolist()
        self._after = torch.get_rng_state()

    def start(self, index: int) -> None:
        """Both passes over micro-batch `index` begin with this."""
        torch.manual_seed(self.seeds[index])

    def end(self) -> None:
        torch.set_rng_state(self._after)


@torch.no_grad()
def first_pass(module: Any, micro: Sequence[Batch], device: torch.device, kind: str, replay: Replay) -> list[dict]:
    """`{learner: Slopes}` for each micro-batch. `module`: the Distiller as Fabric wraps it; `kind`: the loss."""
    seen = []
    for index, batch in enumerate(micro):
        replay.start(index)
        seen.append(module(batch.to(device, non_blocking=True), 1.0, features_only=True))  # no targets: no temperature
    slopes = {name: whole_batch_slopes([features[name] for features in seen], kind) for name in seen[0]}
    return [{name: of_learner[i] for name, of_learner in slopes.items()} for i in range(len(micro))]
