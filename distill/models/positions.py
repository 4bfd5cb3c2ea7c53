"""Positions: the learned image grid at any size, and the text tower's sinusoids."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


@lru_cache(maxsize=256)
def resize_matrix(source: int, target: int, device: torch.device) -> Tensor:
    """Weights `[target, source]`, float32, of bilinear resizing with antialiasing along one axis.

    Bilinear resizing is linear and separable, so two such matrices resize a grid. They depend on the sizes
    alone: unlike a cached grid they are never stale, and serve training too, where the grid must stay differentiable.
    """
    with torch.inference_mode(False), torch.no_grad():  # a matrix first needed by an evaluation also serves training
        line = torch.eye(source, device="cpu")[None, None]  # [1, 1, source, source]: one column per source entry
        resized = F.interpolate(line, size=(target, source), mode="bilinear", antialias=True, align_corners=False)
        return resized[0, 0].to(device)


def resize_grid(grid: Tensor, height: int, width: int) -> Tensor:
    """`grid [G, G', D]` resized to `[height, width, D]`, bilinear with antialiasing, computed in float32.

    Equals `F.interpolate(mode="bilinear", antialias=True)` up to rounding; a grid of the asked size is returned as is.
    """
    if grid.shape[:2] == (height, width):
        return grid
    rows = resize_matrix(grid.shape[0], height, grid.device)  # [height, G]
    columns = resize_matrix(grid.shape[1], width, grid.device)  # [width, G']
    kind = grid.device.type
    exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with exact:
        return torch.einsum("hi,wj,ijd->hwd", rows, columns, grid.float()).to(grid.dtype)


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed positions `[length, width]`, float32: sines in the first half of the channels, cosines in the second.

    Wavelengths are geometric, from 2 pi (timescale 1) to 2 pi x 10,000; `width` must be even.
    """
    timescales = width // 2
    step = math.log(10_000.0) / max(timescales - 1, 1)
    frequency = torch.exp(-step * torch.arange(timescales, dtype=torch.float32))  # [width / 2]
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency  # [length, width / 2]
    return torch.cat([angle.sin(), angle.cos()], dim=1)
