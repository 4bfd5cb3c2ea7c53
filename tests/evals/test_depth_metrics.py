"""Depth and normal metrics against torchmetrics and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional import mean_absolute_percentage_error, mean_squared_error

from distill.evals.depth_metrics import depth_metrics, eigen_crop, normal_metrics


def test_errors_equal_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(500, generator=generator) * 9 + 0.5
    predicted = truth * (0.5 + torch.rand(500, generator=generator))
    found = depth_metrics(predicted, truth)
    assert found[0].item() == pytest.approx(mean_squared_error(predicted, truth, squared=False).item(), rel=1e-5)
    assert found[1].item() == pytest.approx(mean_absolute_percentage_error(predicted, truth).item(), rel=1e-5)


def test_shares_within_a_factor():
    truth = torch.full((6,), 2.0)
    predicted = truth * torch.tensor([1.0, 1.2, 1 / 1.2, 1.5, 1 / 1.9, 2.1])
    assert depth_metrics(predicted, truth)[2:].tolist() == pytest.approx([3 / 6, 4 / 6, 5 / 6])


@given(st.floats(0, 180))
def test_the_angle_between_normals(degrees):
    """A normal turned by a known angle, near 0 and 180 degrees too."""
    angle = math.radians(degrees)
    truth = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    turned = torch.tensor([[math.sin(angle), 0.0, math.cos(angle)]], dtype=torch.float64)
    rmse, mean, *_ = normal_metrics(turned, truth).tolist()
    assert rmse == pytest.approx(degrees, abs=1e-9) and mean == pytest.approx(degrees, abs=1e-9)


def test_angles_of_a_picture():
    angles = np.array([5.0, 20.0, 25.0, 60.0])
    turned = torch.tensor([[math.sin(a), 0, math.cos(a)] for a in np.radians(angles)])
    found = normal_metrics(turned, torch.tensor([[0.0, 0, 1]]).expand(4, 3)).tolist()
    assert found == pytest.approx([math.sqrt((angles**2).mean()), angles.mean(), 1 / 4, 2 / 4, 3 / 4], rel=1e-5)


def test_the_eigen_crop_of_nyu():
    mask = eigen_crop(480, 640)
    assert mask[45:471, 41:601].all() and mask.sum() == (471 - 45) * (601 - 41)
    half = eigen_crop(240, 320)
    assert half.sum() == (236 - 22) * (300 - 20)
