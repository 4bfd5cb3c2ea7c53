from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.study.curves import end_values, loss_curves, shorten

ROWS = [{"step": float(s), "loss": float(s), "student/patch_visible": 10.0 - s} for s in range(1, 11)]


def test_short_columns_are_kept_and_gaps_left_out() -> None:
    rows = [{"step": 1.0, "loss": 3.0}, {"step": 2.0}, {"step": 3.0, "loss": math.nan}, {"step": 4.0, "loss": 1.0}]
    assert shorten(rows, "loss") == {"step": [1.0, 4.0], "value": [3.0, 1.0]}
    assert shorten(rows, "nothing") == {"step": [], "value": []}


def test_long_columns_become_means_at_the_last_step_of_each_stretch() -> None:
    assert shorten(ROWS, "loss", points=5) == {"step": [2, 4, 6, 8, 10], "value": [1.5, 3.5, 5.5, 7.5, 9.5]}


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 60))
def test_shortening_keeps_the_length_in_bounds_and_the_last_step(values: list[float], points: int) -> None:
    rows = [{"step": float(i), "x": v} for i, v in enumerate(values)]
    curve = shorten(rows, "x", points)
    assert len(curve["step"]) == len(curve["value"]) == min(points, len(values))
    assert curve["step"][-1] == len(values) - 1
    assert min(values) - 1e-5 <= min(curve["value"]) <= max(curve["value"]) <= max(values) + 1e-5


def test_curves_are_those_of_one_student_and_only_what_was_logged() -> None:
    curves = loss_curves([{**row, "other/patch_masked": 1.0} for row in ROWS], "student")
    assert set(curves) == {"loss", "patch_visible"}


def test_end_values_compare_the_last_tenth_with_the_first() -> None:
    values = end_values(loss_curves(ROWS, "student"))
    assert values["train/patch_visible"] == pytest.approx(0.0)
    assert values["train/patch_visible_change"] == pytest.approx(-9.0)
    assert values["train/loss_change"] == pytest.approx(9.0)
