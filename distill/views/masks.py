"""Which patches of the student's corrupted view are replaced by the mask token."""

from __future__ import annotations

import math

import numpy as np

from distill.errors import UserError, unknown

KINDS = ("random", "block")
BLOCK_ASPECT = 0.3  # a block's height / width is log-uniform in [0.3, 1 / 0.3]
BLOCK_TRIES = 10  # proposals for each block before the rest is filled at random


def masked_count(patches: int, ratio: float) -> int:
    """How many of `patches` are masked: `ratio * patches` rounded half up.

    At least one patch stays visible; with a ratio above 0 at least one is masked, unless there is only one patch.
    Raises UserError when the ratio is outside [0, 1).
    """
    if not 0 <= ratio < 1:
        raise UserError(f"mask.ratio is {ratio}. Allowed: at least 0 and below 1. Use 0 for no mask.")
    if ratio == 0:
        return 0
    return min(max(math.floor(ratio * patches + 0.5), 1), patches - 1)


def draw_mask(grid: tuple[int, int], ratio: float, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A mask for one image: bool `[N]`, N = rows * columns in raster order, True = masked.

    `masked_count(N, ratio)` patches are masked exactly, whatever the kind: `random` without replacement, or `block` for
    the union of rectangles. Raises UserError for a ratio outside [0, 1) or an unknown kind.
    """
    if kind not in KINDS:
        raise unknown("mask kind", kind, KINDS)
    rows, columns = grid
    count = masked_count(rows * columns, ratio)
    mask = np.zeros(grid, dtype=bool)
    if kind == "block":
        _add_blocks(mask, count, rng)
    flat = mask.reshape(-1)
    visible = np.flatnonzero(~flat)
    flat[rng.permutation(visible)[: count - int(flat.sum())]] = True
    return flat


def _add_blocks(mask: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Adds rectangles to `mask` until `count` patches are masked or no more fit; never masks more than `count`."""
    rows, columns = mask.shape
    least = max(2, mask.size // 16)  # the area of the smallest block, in patches
    missing = count
    tries = 0
    while missing >= least and tries < BLOCK_TRIES:
        area = rng.uniform(least, missing)
        aspect = math.exp(rng.uniform(math.log(BLOCK_ASPECT), -math.log(BLOCK_ASPECT)))
        height = min(rows, max(1, round(math.sqrt(area * aspect))))
        width = min(columns, max(1, round(math.sqrt(area / aspect))))
        top, left = rng.integers(0, rows - height + 1), rng.integers(0, columns - width + 1)
        block = mask[top : top + height, left : left + width]
        added = block.size - int(block.sum())
        if 0 < added <= missing:
            block[:] = True
            missing -= added
            tries = 0
        else:
            tries += 1
