"""Mean and covariance of features that stream by, over all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.objectives.distributed import all_reduce_sum


class Moments:
    """Sums of features `[..., D]` and of their outer products, in fp64 so that large means do not cancel."""

    def __init__(self, width: int):
        self.width, self.count = width, 0.0
        self.sum = torch.zeros(width, dtype=torch.float64)  # [D]
        self.products = torch.zeros(width, width, dtype=torch.float64)  # [D, D]

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Takes in this rank's features `[..., D]`, at least one; every rank must call it as often."""
        x = features.detach().flatten(0, -2).double()  # [T, D]
        total = all_reduce_sum(torch.cat([x.T @ x, x.sum(0)[None], x.new_full((1, self.width), len(x))]))
        self.products = self.products.to(x.device) + total[:-2]
        self.sum = self.sum.to(x.device) + total[-2]
        self.count += float(total[-1, 0])

    def mean(self) -> Tensor:
        """`[D]`, fp64."""
        return self.sum / self.count

    def covariance(self) -> Tensor:
        """`[D, D]`, biased, fp64."""
        mean = self.mean()
        return self.products / self.count - torch.outer(mean, mean)
