"""The prototype head of self-distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.config.schema import HeadsConfig
from distill.models.unit import unit


class PrototypeHead(nn.Module):
    """Token -> MLP with GELU -> L2-normalised bottleneck -> cosines with K prototypes (the DINO head).

    The prototypes are weight-normalised with their length fixed at 1: only directions are learned.
    """

    def __init__(self, width: int, cfg: HeadsConfig):
        super().__init__()
        sizes = [width, *[cfg.hidden] * (cfg.layers - 1), cfg.bottleneck]
        steps: list[nn.Module] = []
        for inputs, outputs in zip(sizes[:-1], sizes[1:]):
            steps += [nn.Linear(inputs, outputs), nn.GELU()]
        self.mlp = nn.Sequential(*steps[:-1])  # no activation after the bottleneck
        self.prototypes = nn.Parameter(torch.empty(cfg.prototypes, cfg.bottleneck))  # [K, d], any length
        # Only directions count. Their length sets how far a step turns them: short ones would turn so fast at the start
        # that targets change under the student.
        nn.init.normal_(self.prototypes)

    def bottleneck(self, x: Tensor) -> Tensor:
        """`x [..., D]` -> `[..., d]` of length 1, float32."""
        return unit(self.mlp(x).float())

    def directions(self) -> Tensor:
        """The prototypes `[K, d]`, each of length 1, float32."""
        return unit(self.prototypes.float())

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., D]` -> cosines `[..., K]`, float32 under autocast too; divide by a temperature for logits.

        Materialises every token's K cosines: losses over patches take `bottleneck` and `directions` in chunks instead.
        """
        bottleneck = self.bottleneck(x)
        with torch.autocast(x.device.type, enabled=False):  # it would round the cosines
            return bottleneck @ self.directions().T
