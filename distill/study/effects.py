"""The effect plot: paired differences of every comparison with their 95 % intervals, one panel a metric."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from distill.study.columns import SCORES, Column
from distill.study.plots import INK, MASKED, PALE, STYLE, VISIBLE
from distill.study.results import Tree, difference, measured

ACROSS = 5  # panels beside each other: what a page is wide


def effects_svg(results: Tree) -> str:
    """Differences second - first by metric; blue: better and sure, orange: worse and sure, grey: zero is possible, or
    more is neither better nor worse.

    Comparisons without data have no row; empty where none has data. One seed gives a grey point without a line.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = measured(results, SCORES)
    pairs = [p for p in results["compare"] if any(difference(results, p["first"], p["second"], c) for c in columns)]
    if not pairs:
        return ""
    names = [f"{p['first']} → {p['second']}" for p in pairs]
    across = min(ACROSS, len(columns))
    down = math.ceil(len(columns) / across)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 1.5 * across, down * (0.8 + 0.26 * len(pairs))), layout="constrained")
        panels = figure.subplots(down, across, sharey=True, squeeze=False)
        for axes, column in zip(panels.flat, columns):
            _panel(axes, column, results, pairs)
        for axes in panels.flat[len(columns) :]:
            axes.remove()
        panels[0, 0].set_yticks(range(len(names)), names)
        panels[0, 0].set_ylim(len(names) - 0.5, -0.5)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _panel(axes: Any, column: Column, results: Tree, pairs: Sequence[Tree]) -> None:
    """One metric: a row a pair."""
    axes.axvline(0, color=INK, linewidth=0.8)
    for row, pair in enumerate(pairs):
        change = difference(results, pair["first"], pair["second"], column)
        if change is None:
            continue
        colour = INK
        if change.low is not None and change.high is not None:
            if change.low > 0 or change.high < 0:
                colour = {True: VISIBLE, False: MASKED, None: INK}[column.better(change.mean)]
            ends = [change.low * column.scale, change.high * column.scale]
            axes.plot(ends, [row, row], color=colour, linewidth=1.6)
        axes.plot([change.mean * column.scale], [row], "o", color=colour, markersize=4)
    unit = "points" if column.scale == 100 else column.group.split(", ")[-1]
    axes.set_title(f"{column.short}, {unit}", fontsize=9)
    axes.grid(axis="x", color=PALE, linewidth=0.5)
