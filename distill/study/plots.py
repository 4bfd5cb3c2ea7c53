"""Loss curves as small SVG pictures, one a variant, on shared axes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from distill.study.curves import Curve

MASKED, VISIBLE = "#c2410c", "#1d6fa5"
INK, PALE = "#374151", "#d1d5db"
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "study",
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def limits(curves: Sequence[Mapping[str, Curve]], terms: Sequence[str]) -> tuple[float, float]:
    """Lowest and highest value of the terms over all variants, with a little room."""
    values = [v for group in curves for term in terms if term in group for v in group[term]["value"]]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.05 * (high - low or 1.0)
    return low - room, high + room


def patch_loss_svg(curves: Mapping[str, Curve], bounds: tuple[float, float]) -> str:
    """Patch loss on masked and on visible tokens over the steps; a term that was never logged has no line."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(3.2, 2.0), layout="constrained")
        axes = figure.subplots()
        for term, colour in (("patch_visible", VISIBLE), ("patch_masked", MASKED)):
            if term in curves:
                axes.plot(curves[term]["step"], curves[term]["value"], color=colour, linewidth=1.6)
        axes.set_ylim(*bounds)
        axes.grid(axis="y", color=PALE, linewidth=0.5)
        axes.set_xlabel("step")
        axes.set_ylabel("patch loss")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue()
