"""Resized position grids against F.interpolate, and the sinusoids against their formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from distill.models.positions import resize_grid, resize_matrix, sinusoids


def _interpolate(grid, height, width):
    maps = F.interpolate(grid.permute(2, 0, 1)[None], size=(height, width), mode="bilinear", antialias=True)
    return maps[0].permute(1, 2, 0)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 24), st.integers(1, 30))
def test_matrix_is_a_normalised_triangle_filter(source, target):
    scale = source / target
    reach = max(scale, 1.0)  # antialiasing widens the triangle when shrinking
    expected = torch.zeros(target, source)
    for i in range(target):
        for j in range(source):
            expected[i, j] = max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / reach)
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(resize_matrix(source, target, torch.device("cpu")), expected, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(2, 30), st.integers(2, 30))
def test_resizing_equals_interpolate(rows, columns, height, width):
    grid = torch.randn(rows, columns, 3, generator=torch.Generator().manual_seed(rows * 31 + columns))
    expected = _interpolate(grid, height, width)
    torch.testing.assert_close(resize_grid(grid, height, width), expected, atol=1e-5, rtol=1e-4)


def test_gradient_equals_interpolates():
    grid = torch.randn(32, 32, 4, requires_grad=True)
    weight = torch.randn(7, 9, 4)
    (ours,) = torch.autograd.grad((resize_grid(grid, 7, 9) * weight).sum(), grid)
    (theirs,) = torch.autograd.grad((_interpolate(grid, 7, 9) * weight).sum(), grid)
    torch.testing.assert_close(ours, theirs)


def test_a_grid_of_the_asked_size_is_exact():
    grid = torch.randn(5, 6, 2)
    assert resize_grid(grid, 5, 6) is grid


def test_a_matrix_first_made_in_inference_mode_serves_training():
    resize_matrix.cache_clear()
    with torch.inference_mode():
        resize_grid(torch.randn(8, 8, 2), 3, 3)
    grid = torch.randn(8, 8, 2, requires_grad=True)
    resize_grid(grid, 3, 3).sum().backward()
    assert grid.grad.sum().item() == pytest.approx(18, rel=1e-5)  # every output's weights sum to one


def test_autocast_does_not_lower_the_precision():
    grid = torch.randn(32, 32, 8)
    exact = resize_grid(grid, 7, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resize_grid(grid, 7, 7), exact)


def test_sinusoids_follow_the_formula():
    table = sinusoids(50, 8)
    for position in (0, 1, 7, 49):
        for i in range(4):
            angle = position * 10_000 ** (-i / 3)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-4)
            assert table[position, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-4)
