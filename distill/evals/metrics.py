"""The metrics that tasks share, on integer labels: confusion matrices and what is read off them."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion(truth: Tensor, predicted: Tensor, classes: int, ignore: int) -> Tensor:
    """Counts `[classes, classes]` int64, rows = truth, columns = prediction; where truth == ignore is left out.

    `truth` and `predicted`: integer tensors of one shape, values in `[0, classes)` (truth may also hold `ignore`).
    """
    keep = truth != ignore
    cells = truth[keep].long() * classes + predicted[keep].long()
    return torch.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def class_iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class `[K]` float64; NaN where neither truth nor prediction has the class."""
    matrix = matrix.double()
    hit = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - hit
    return torch.where(union > 0, hit / union.clamp(min=1), torch.nan)


def mean_iou(matrix: Tensor) -> float:
    """Mean of `class_iou` over the classes with a non-empty union; NaN for an empty matrix."""
    return float(class_iou(matrix).nanmean())


def accuracy(matrix: Tensor) -> float:
    """Share of the counted positions that are right; NaN for an empty matrix."""
    return float(matrix.diagonal().sum().double() / matrix.sum().double())


def mean_class_accuracy(matrix: Tensor) -> float:
    """Mean recall over the classes that the truth has; NaN for an empty matrix."""
    matrix = matrix.double()
    present = matrix.sum(1) > 0
    return float((matrix.diagonal()[present] / matrix.sum(1)[present]).mean())


def chance_miou(matrix: Tensor) -> float:
    """Expected mIoU of labels drawn uniformly: a class with share p of the pixels gets (p/K) / (p + 1/K - p/K)."""
    k = matrix.shape[0]
    share = matrix.sum(1).double() / matrix.sum().double()
    return float((share / k / (share + 1 / k - share / k)).mean())
