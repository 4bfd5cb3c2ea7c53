"""Means, 95 % intervals and paired differences over a handful of seeds (Student's t, no dependencies)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval; `low` and `high` are None when there is one value only."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the interval's width: what goes behind a plus-minus sign."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def t_probability(t: float, freedom: int) -> float:
    """P(-t < T < t) for Student's T with a whole number of degrees of freedom (the closed trigonometric series)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom == 1:
        return 2 * angle / math.pi
    even = freedom % 2 == 0
    term = 1.0 if even else cosine
    total = term
    for k in range(2 if even else 3, freedom, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return sine * total if even else 2 / math.pi * (angle + sine * total)


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t with P(-t < T < t) = `level`; `freedom` >= 1."""
    if freedom < 1:
        raise ValueError(f"degrees of freedom must be at least 1, not {freedom}")
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of independent values (mean +- t s / sqrt(n)); at least one value, all finite."""
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1)
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = t_quantile(n - 1) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Interval | None:
    """Interval of `second - first` over the seeds that both have; None when they share no seed."""
    seeds = sorted(first.keys() & second.keys())
    return mean_interval([second[s] - first[s] for s in seeds]) if seeds else None
