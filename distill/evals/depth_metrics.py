"""What is read off predicted depth and normals, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.evals.per_image import mean_samples

DEPTH_METRICS = ("rmse", "abs_rel", "delta1", "delta2", "delta3")
NORMAL_METRICS = ("rmse", "mean_angle", "share_11", "share_22", "share_30")
DELTA = 1.25
ANGLES = (11.25, 22.5, 30.0)  # degrees
EIGEN = (45 / 480, 471 / 480, 41 / 640, 601 / 640)  # rows and columns of NYUv2's 480 x 640 that are scored


def eigen_crop(height: int, width: int) -> Tensor:
    """Which pixels the crop of Eigen et al. (2014) keeps, bool `[H, W]`; in proportion for other sizes than NYUv2's."""
    top, bottom, left, right = EIGEN
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return mask


def depth_metrics(predicted: Tensor, truth: Tensor) -> Tensor:
    """DEPTH_METRICS `[5]` float64 of one image's valid pixels, `[n]` each, all above 0.

    Root of the mean squared error in the depth's unit, mean of |p - t| / t, and shares with max(p / t, t / p) below
    1.25, 1.25^2 and 1.25^3.
    """
    p, t = predicted.double(), truth.double()
    ratio = torch.maximum(p / t, t / p)
    shares = [(ratio < DELTA**power).double().mean() for power in (1, 2, 3)]
    return torch.stack([(p - t).square().mean().sqrt(), ((p - t).abs() / t).mean(), *shares])


def normal_metrics(predicted: Tensor, truth: Tensor) -> Tensor:
    """NORMAL_METRICS `[5]` float64 of one image's valid pixels, unit vectors `[n, 3]` each.

    Root of the mean squared angle and mean angle in degrees, and shares below 11.25, 22.5 and 30 degrees.
    """
    p, t = predicted.double(), truth.double()
    sine = torch.linalg.cross(p, t).norm(dim=-1)
    angle = torch.rad2deg(torch.atan2(sine, (p * t).sum(-1)))  # exact near 0 too, where acos is not
    shares = [(angle < limit).double().mean() for limit in ANGLES]
    return torch.stack([angle.square().mean().sqrt(), angle.mean(), *shares])


def metric_samples(
    names: Sequence[str], scores: Mapping[int, Tensor], constant: Mapping[int, Tensor]
) -> dict[str, Any]:
    """What a bootstrap needs: scores (and those of the constant answer, if any) `[len(names)]` by image."""
    samples = {name: mean_samples({at: float(s[k]) for at, s in scores.items()}) for k, name in enumerate(names)}
    if constant:
        samples["rmse_constant"] = mean_samples({at: float(s[0]) for at, s in constant.items()})
    return samples
