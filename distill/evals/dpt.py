"""The DPT decoder of the released TIPSv2 heads (Ranftl et al. 2021), for any of our encoders.

Facts (the published decoders): four taps of the encoder, the final norm on each; CLS-1 beside every patch, linear 2D ->
D, tanh-GELU; 1x1 convolutions to D/8, D/4, D/2, D channels; 4x and 2x transposed convolution, nothing, stride-2 3x3
convolution; 3x3 convolutions without bias to `channels`. From the coarsest to the finest, fusion: the finer map through
a residual unit (ReLU, 3x3, ReLU, 3x3, no biases) is added, another residual unit, twice the size bilinearly
(align_corners=True), 1x1 convolution. Then a 3x3 convolution and a linear layer: 8 times the patch grid. Depth has a
ReLU before the linear layer, normals have none. Names of weights are those of the published files
(`distill.evals.dpt_files`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 256
STAGES = 4


def tap_blocks(depth: int) -> list[int]:
    """The blocks (from 0) whose outputs are decoded: the ends of the quarters of `depth` blocks."""
    return [math.ceil(depth * quarter / STAGES) - 1 for quarter in range(1, STAGES + 1)]


def default_channels(width: int) -> int:
    """256, as published for 768 and more, or a third of a narrower encoder's width (a multiple of 8)."""
    return max(min(CHANNELS, width // 3) // 8 * 8, 8)


class ResidualUnit(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """Adds a finer map (but to the first, coarsest one), and doubles the size."""

    def __init__(self, channels: int, first: bool):
        super().__init__()
        if not first:
            self.residual_unit = ResidualUnit(channels)
        self.main_unit = ResidualUnit(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        if finer is not None:
            if finer.shape != x.shape:  # an odd grid, halved and doubled
                finer = F.interpolate(finer, size=x.shape[2:], mode="bilinear", align_corners=False)
            x = x + self.residual_unit(finer)
        x = F.interpolate(self.main_unit(x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Reassemble(nn.Module):
    """Tokens of the four taps to maps at 4, 2, 1 and 1/2 times the patch grid."""

    def __init__(self, width: int, sizes: Sequence[int]):
        super().__init__()
        self.readout_projects = nn.ModuleList(nn.Linear(2 * width, width) for _ in sizes)
        self.out_projections = nn.ModuleList(nn.Conv2d(width, size, 1) for size in sizes)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(sizes[0], sizes[0], 4, stride=4),
                nn.ConvTranspose2d(sizes[1], sizes[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(sizes[3], sizes[3], 3, stride=2, padding=1),
            ]
        )

    def forward(self, taps: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        maps = []
        layers = zip(taps, self.readout_projects, self.out_projections, self.resize_layers)
        for (cls, patches), readout, project, resize in layers:
            beside = cls[:, None, None].expand_as(patches)  # [B, h, w, D]
            x = F.gelu(readout(torch.cat([patches, beside], -1)), approximate="tanh")
            maps.append(resize(project(x.permute(0, 3, 1, 2))))
        return maps


class DptHead(nn.Module):
    """Four taps to `outputs` values at 8 times the patch grid."""

    def __init__(self, width: int, outputs: int, *, channels: int = CHANNELS, relu: bool):
        super().__init__()
        sizes = [max(width // part, 1) for part in (8, 4, 2, 1)]
        self.reassemble = Reassemble(width, sizes)
        self.convs = nn.ModuleList(nn.Conv2d(size, channels, 3, padding=1, bias=False) for size in sizes)
        self.fusion_blocks = nn.ModuleList(Fusion(channels, first=at == 0) for at in range(STAGES))
        self.project = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Linear(channels, outputs)
        self.relu = relu

    def forward(self, taps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Each tap: CLS-1 `[B, D]` and patches `[B, h, w, D]`, first block first -> `[B, outputs, 8h, 8w]`."""
        maps = [conv(x) for conv, x in zip(self.convs, self.reassemble(taps))]
        x = None
        for fusion, finer in zip(self.fusion_blocks, reversed(maps)):
            x = fusion(finer) if x is None else fusion(x, finer)
        x = self.project(x)
        if self.relu:
            x = F.relu(x)
        return self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
