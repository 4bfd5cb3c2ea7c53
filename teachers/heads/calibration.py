"""The temperature at which targets are as sharp as asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill.objectives.distributed import all_reduce_mean

COLDEST, HOTTEST = 1e-4, 1e2  # cosines lie in [-1, 1]: targets are one-hot at one end and uniform at the other
HALVINGS = 24


@torch.no_grad()
def mean_entropy(cosines: Tensor, temperature: float) -> float:
    """Entropy of `softmax(cosines / temperature)`, mean over `[T, K]` and all ranks, as a share of log K."""
    probs = (cosines.float() / temperature).softmax(dim=-1)
    return float(all_reduce_mean(torch.special.entr(probs).sum(dim=-1).mean())) / math.log(cosines.shape[-1])


def temperature_for(cosines: Tensor, entropy: float) -> float:
    """The temperature at which targets `softmax(cosines / temperature)` have `entropy`, a share of log K.

    `cosines` `[T, K]`: of a sample of tokens. The mean entropy rises with the temperature: bisection on its logarithm.
    """
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if mean_entropy(cosines, math.exp(middle)) < entropy:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
