"""The loss curves of a cell, short enough to keep beside its result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

POINTS = 120
TERMS = ("loss", "patch_masked", "patch_visible", "patch", "cls", "contrastive")

Row = Mapping[str, float]
Curve = dict[str, list[float]]
"""`step` and `value`, of equal length."""


def shorten(rows: Sequence[Row], column: str, points: int = POINTS) -> Curve:
    """At most `points` of a column: means over equal stretches of its rows, at the last step of each stretch."""
    seen = [(r["step"], r[column]) for r in rows if column in r and math.isfinite(r[column])]
    count = min(points, len(seen))
    edges = [round(i * len(seen) / count) for i in range(count + 1)] if count else []
    parts = [seen[a:b] for a, b in zip(edges, edges[1:])]
    return {
        "step": [p[-1][0] for p in parts],
        "value": [round(math.fsum(v for _, v in p) / len(p), 5) for p in parts],
    }


def loss_curves(rows: Sequence[Row], student: str) -> dict[str, Curve]:
    """Curves of the total loss and of a student's terms, those that were logged; `rows` come from metrics.csv."""
    columns = {term: term if term == "loss" else f"{student}/{term}" for term in TERMS}
    curves = {term: shorten(rows, column) for term, column in columns.items()}
    return {term: curve for term, curve in curves.items() if curve["step"]}


def end_values(curves: Mapping[str, Curve], share: float = 0.1) -> dict[str, float]:
    """`train/TERM`: mean over the last tenth; `train/TERM_change`: that minus the mean over the first tenth."""
    values = {}
    for term, curve in curves.items():
        size = max(1, round(share * len(curve["value"])))
        first, last = curve["value"][:size], curve["value"][-size:]
        end = math.fsum(last) / len(last)
        values[f"train/{term}"] = end
        values[f"train/{term}_change"] = end - math.fsum(first) / len(first)
    return values
