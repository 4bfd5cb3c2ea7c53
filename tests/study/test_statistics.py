from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.study.statistics import mean_interval, paired_difference, t_probability, t_quantile

values = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


# Two-sided 95 % points of Student's t, as printed in statistical tables.
@pytest.mark.parametrize(
    ("freedom", "point"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_quantile_is_that_of_the_tables(freedom: int, point: float) -> None:
    assert t_quantile(freedom) == pytest.approx(point, abs=6e-4)


def test_probability_in_closed_form_for_one_and_two_degrees() -> None:
    assert t_probability(1.0, 1) == pytest.approx(0.5)  # Cauchy: 2 atan(t) / pi
    assert t_probability(2.0, 2) == pytest.approx(2 / math.sqrt(6))  # t / sqrt(2 + t^2)


def test_probability_agrees_with_numerical_integration() -> None:
    freedom, t, steps = 7, 1.3, 20_000
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    width = 2 * t / steps
    density = (scale * (1 + (-t + (i + 0.5) * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps))
    assert t_probability(t, freedom) == pytest.approx(sum(density) * width, abs=1e-7)


def test_interval_computed_by_hand() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])  # s = 1, t(2) = 4.30265, t / sqrt(3) = 2.48414
    assert (interval.mean, interval.n) == (2.0, 3)
    assert interval.half == pytest.approx(2.48414, abs=1e-5)
    assert interval.low == pytest.approx(-0.48414, abs=1e-5)


def test_one_value_has_no_interval() -> None:
    interval = mean_interval([0.3])
    assert (interval.mean, interval.low, interval.high, interval.half) == (0.3, None, None, None)


@given(values, st.floats(-10, 10), st.floats(0.1, 10))
def test_interval_follows_shift_and_scale(sample: list[float], shift: float, scale: float) -> None:
    plain, moved = mean_interval(sample), mean_interval([v * scale + shift for v in sample])
    assert moved.mean == pytest.approx(plain.mean * scale + shift, abs=1e-6)
    assert plain.half is not None
    assert moved.half == pytest.approx(plain.half * scale, abs=1e-6, rel=1e-6)


def test_difference_is_paired_by_seed() -> None:
    first = {0: 1.0, 1: 5.0, 2: 9.0}
    difference = paired_difference(first, {2: 10.0, 0: 2.0, 1: 6.0, 7: 100.0})
    assert difference is not None
    assert (difference.mean, difference.low, difference.high, difference.n) == (1.0, 1.0, 1.0, 3)


def test_no_common_seed_gives_no_difference() -> None:
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
