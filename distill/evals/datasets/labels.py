"""Mapping the values of masks to classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distill.errors import UserError
from distill.evals.datasets.benchmark import IGNORE


def without_zero(mask: np.ndarray) -> np.ndarray:
    """Value 0 (and 255) is not scored; the others, from 1, are the classes 0, 1, ..."""
    mask = mask.astype(np.int64)
    return np.where((mask == 0) | (mask == IGNORE), IGNORE, mask - 1)


def mapped(mask: np.ndarray, classes: Mapping[int, int], path: Path) -> np.ndarray:
    """Each value's class; 255 is not scored unless `classes` says otherwise. UserError for a value it lacks."""
    known = {IGNORE: IGNORE, **classes}
    wrong = [value for value in np.unique(mask).tolist() if value not in known]
    if wrong:
        raise UserError(
            f"The mask {path} has the value {wrong[0]}, which stands for no class (allowed: {min(known)} to "
            f"{max(v for v in known if v != IGNORE)} where numbered, and {IGNORE}). "
            f"Give the dataset's own masks."
        )
    table = np.zeros(max(known) + 1, np.int64)
    table[list(known)] = list(known.values())
    return table[mask]
