"""Linear layers on fixed features, one for each learning rate of a sweep, trained side by side on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

INITIAL_STD = 0.01
WARMUP = 0.05  # of the steps
SMALLEST_STD = 1e-6  # features that vary less than this carry nothing


class Standardise:
    """Running mean and standard deviation of features over a split: batch norm with exact statistics."""

    def __init__(self) -> None:
        self.count = 0
        self.shift = self.sums = self.squares = torch.zeros(0)  # [D] float64

    def add(self, features: Tensor) -> None:
        """features `[..., D]`."""
        x = features.flatten(0, -2).double()
        if not self.count:
            self.shift, self.sums, self.squares = x.mean(0), x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
        x = x - self.shift  # near the mean, so that the sums lose no digits
        self.count += len(x)
        self.sums += x.sum(0)
        self.squares += x.square().sum(0)

    def __call__(self, features: Tensor) -> Tensor:
        """Mean 0, variance 1 over all features added; those that do not vary become 0."""
        mean = self.sums / self.count
        std = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        scale = torch.where(std > SMALLEST_STD, 1 / std.clamp(min=SMALLEST_STD), 0)
        return (features - (mean + self.shift).float()) * scale.float()


class LinearHeads(nn.Module):
    """R linear layers `[D, K]` on the same input. All start from the same small normal weights, drawn from `seed`."""

    def __init__(self, width: int, outputs: int, rates: Sequence[float], *, bias: float = 0.0, seed: int = 0):
        super().__init__()
        self.rates, self.outputs = list(rates), outputs
        start = INITIAL_STD * torch.randn(width, outputs, generator=torch.Generator().manual_seed(seed))
        self.weights = nn.ParameterList(start.clone() for _ in rates)
        self.biases = nn.ParameterList(torch.full((outputs,), bias) for _ in rates)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` -> `[..., R, K]`."""
        out = x @ torch.cat(list(self.weights), 1) + torch.cat(list(self.biases))
        return out.unflatten(-1, (len(self.rates), self.outputs))

    def groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer."""
        return [[weight, bias] for weight, bias in zip(self.weights, self.biases)]


@torch.enable_grad()
def optimise(
    groups: Sequence[Sequence[nn.Parameter]],
    rates: Sequence[float],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    weight_decay: float = 1e-4,
) -> None:
    """AdamW on `groups` of parameters, each with its own peak learning rate: linear warm-up (5 %), linear decay to 0.

    `loss` draws the next batch; a sum over groups whose terms do not share parameters trains them independently.
    """
    optimizer = torch.optim.AdamW(
        [{"params": list(group), "lr": rate} for group, rate in zip(groups, rates)], weight_decay=weight_decay
    )
    warm = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(steps - warm, 1))
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
