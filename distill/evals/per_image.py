"""What a result keeps of each image, so that intervals can be worked out later without the model.

`per_image[metric]` is one of
    {"kind": "mean", "values": [v of each image]}                       the metric is their mean
    {"kind": "ratio", "values": [[part, whole] of each image]}          sum of parts over sum of wholes
    {"kind": "groups", "values": [[group, v] of each image]}            mean over groups of their images' mean
    {"kind": "iou", "values": [[class, hits, union, class, ...], ...]}  summed hits over summed union, mean of classes
                                                                        (recalls: the truth in place of the union)
Images come in the dataset's order, so that two models' results on one dataset are pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDS = 1000
COVERAGE = 0.95


def mean_samples(of_image: Mapping[int, float]) -> dict[str, Any]:
    """A value of each image, by its place in the dataset."""
    return {"kind": "mean", "values": [round(float(of_image[at]), 6) for at in sorted(of_image)]}


def ratio_samples(of_image: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """Part and whole of each image, by its place in the dataset."""
    return {"kind": "ratio", "values": [[round(float(v), 6) for v in of_image[at]] for at in sorted(of_image)]}


def group_samples(of_image: Mapping[int, tuple[int, float]]) -> dict[str, Any]:
    """Group and value of each image, by its place in the dataset."""
    values = [[of_image[at][0], round(float(of_image[at][1]), 6)] for at in sorted(of_image)]
    return {"kind": "groups", "values": values}


def iou_samples(of_image: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """`overlaps` of each image, by its place in the dataset."""
    return {"kind": "iou", "values": [list(of_image[at]) for at in sorted(of_image)]}


def overlaps(matrix: Tensor) -> list[int]:
    """One image's confusion matrix `[K, K]` -> class, hits and union of each class with a union, in one list."""
    return _of_classes(matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal())


def right_of_classes(matrix: Tensor) -> list[int]:
    """One image's confusion matrix `[K, K]` -> class, hits and count of each class that the truth has, in one list."""
    return _of_classes(matrix.diagonal(), matrix.sum(1))


def _of_classes(hits: Tensor, of: Tensor) -> list[int]:
    there = of.nonzero()[:, 0]
    return torch.stack([there, hits[there], of[there]], 1).flatten().tolist()


def resampled(samples: Mapping[str, Any], weights: np.ndarray) -> np.ndarray:
    """The metric `[R]` when image i counts `weights[r, i]` times."""
    values = samples["values"]
    if samples["kind"] == "mean":
        return weights @ np.array(values, float) / weights.sum(1)
    if samples["kind"] == "ratio":
        part, whole = np.array(values, float).reshape(-1, 2).T
        return weights @ part / np.maximum(weights @ whole, 1e-12)
    if samples["kind"] == "groups":
        group, value = np.array(values, float).reshape(-1, 2).T
        return _mean_of_groups(group, value, weights)
    hits, union = _dense(values)
    total = weights @ union  # [R, K]
    iou = np.where(total > 0, weights @ hits / np.maximum(total, 1), np.nan)
    return np.nanmean(iou, 1)


def _mean_of_groups(group: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`[R]`: groups of which no image was drawn are left out."""
    member = (group[:, None] == np.unique(group)).astype(float)  # [N, G]
    total = weights @ member  # [R, G]
    means = np.where(total > 0, weights @ (member * values[:, None]) / np.maximum(total, 1), np.nan)
    return np.nanmean(means, 1)


def _dense(values: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Hits and union of each image and class that occurs, `[N, K]` each."""
    rows = [np.array(value, np.int64).reshape(-1, 3) for value in values]
    classes = max((int(row[:, 0].max()) for row in rows if len(row)), default=0) + 1
    hits, union = np.zeros((len(rows), classes)), np.zeros((len(rows), classes))
    for at, row in enumerate(rows):
        hits[at, row[:, 0]], union[at, row[:, 0]] = row[:, 1], row[:, 2]
    return hits, union


def draws(images: int, rounds: int = ROUNDS, seed: int = 0) -> np.ndarray:
    """How often each image is drawn in each round of a bootstrap, `[rounds, images]`; the same for equal arguments."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), rounds).astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap values."""
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
