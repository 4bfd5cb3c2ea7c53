"""Procedural patterns: where a surface shows its second colour.

A pattern takes coordinates (float32, broadcastable) and gives the share of the second colour, `[H, W]` in `[0, 1]`.
Things pass their own frame (`[-1, 1]`, so a pattern turns and grows with its thing); walls pass the image's frame and
grounds a frame in perspective, both in image sides. Nothing depends on the size of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]

_SIDE = 1024
_CELLS = 32


def _noise_tile() -> np.ndarray:
    """Smooth noise with period one, near uniform in `[0, 1]`, flat `[1024 * 1024]`: a 32 x 32 lattice, interpolated."""
    tile = np.random.RandomState(20).rand(_CELLS, _CELLS).astype(np.float32)
    at = np.arange(_SIDE) * _CELLS / _SIDE
    low = at.astype(int)
    weight = ((at - low) ** 2 * (3 - 2 * (at - low))).astype(np.float32)
    for axis, weights in ((0, weight[:, None]), (1, weight[None, :])):
        tile = tile.take(low, axis) * (1 - weights) + tile.take((low + 1) % _CELLS, axis) * weights
    # interpolated values crowd around 1/2: their quantiles spread them out again
    quantiles = np.quantile(tile[::8, ::8], np.linspace(0, 1, 64))
    return np.interp(tile.ravel(), quantiles, np.linspace(0, 1, 64)).astype(np.float32)


_TILE = _noise_tile()


def noise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth noise in `[0, 1]`, features about 1/32 wide, period 1. Coordinates must stay above -8."""
    column = ((x + 8.0) * _SIDE).astype(np.int32) & (_SIDE - 1)
    row = ((y + 8.0) * _SIDE).astype(np.int32) & (_SIDE - 1)
    return _TILE.take((row * _SIDE) + column)


def sharpen(value: np.ndarray, slope: float) -> np.ndarray:
    """`0.5 + slope * value`, kept within `[0, 1]`: a soft step at `value = 0`."""
    out = value * slope
    out += 0.5
    np.maximum(out, 0.0, out=out)
    np.minimum(out, 1.0, out=out)
    return out


def _wave(x: np.ndarray, cycles: float) -> np.ndarray:
    return np.sin(x * (2 * math.pi * cycles))


# ------------------------------------------------------------------------------------------------ on things


def stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return sharpen(_wave(u, 1.4), 1.5) + 0 * v


def checks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return sharpen(_wave(u, 0.9) * _wave(v, 0.9), 2.5)


def dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return sharpen(_wave(u, 1.3) * _wave(v, 1.3) - 0.35, 3.0)


def leaves(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return sharpen(noise(u * 0.11, v * 0.11) - 0.5, 1.6)


def scales(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return sharpen(_wave(u + 0.18 * np.cos(v * 14.0), 2.0), 1.0)


def chips(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return sharpen(noise(u * 0.13, v * 0.13) - 0.70, 6.0)


def planks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return sharpen(np.cos(v * (2 * math.pi * 1.8)) - 0.75, 3.0) + 0 * u


def plain(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.25 - 0.25 * v + 0 * u


# ------------------------------------------------------------------------------------------------ on regions


def clouds(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return sharpen(noise(x * 0.09, y * 0.22) - 0.55, 1.5)


def ripples(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return sharpen(noise(x * 0.13, y * 0.55) - 0.55, 1.5)


def blades(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return sharpen(noise(x * 0.55, y * 0.22) - 0.5, 1.4)


def grains(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    speckle = noise(x * 0.9, y * 0.9)
    return sharpen(0.35 * np.sin(y * 40.0 + x * 6.0) + speckle - 0.5, 0.7)


def bricks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mortar lines of a running bond; single bricks differ in tone."""
    rows, columns = y * 7.0 + 64.0, x * 3.5 + 64.0
    row = np.floor(rows)
    columns = columns + 0.5 * (row % 2)
    column = np.floor(columns)
    joint = np.minimum(np.minimum(rows - row, row + 1 - rows), 2 * np.minimum(columns - column, column + 1 - columns))
    tone = noise(column * 0.37, row * 0.23)
    return np.maximum(sharpen(0.14 - joint, 5.0), 0.35 * tone)


def boards(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Long boards with dark gaps and grain along them."""
    across = y * 5.0 + 64.0
    board = np.floor(across)
    gap = np.minimum(across - board, board + 1 - across)
    grain = noise(x * 0.06 + board * 0.29, y * 0.6)
    return np.maximum(sharpen(0.09 - gap, 7.0), 0.55 * grain)
