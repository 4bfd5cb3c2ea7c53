"""A claim's interval as a small picture, for a table of claims: where it lies, and where it was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distill.study.claim_lines import ClaimLine

WIDTH, HEIGHT = 132, 18  # px
POINTS = 100.0  # scale of the columns that share an axis


def widest(lines: Sequence[ClaimLine]) -> float:
    """Half of the axis that all claims in percentage points share: their farthest end from zero."""
    return max((abs(end) for line in lines if line.scaled == POINTS for end in _ends(line)), default=0.0)


def interval_svg(line: ClaimLine, limit: float) -> str:
    """Zero, the expected side (shaded), the interval and its mean; empty for a claim in other units or not measured.

    `limit`: half of the axis, in percentage points.
    """
    change = line.finding.difference
    if change is None or line.scaled != POINTS or not limit or not math.isfinite(change.mean):
        return ""
    lower, upper = (_place(bound * POINTS, limit) for bound in line.finding.claim.allowed)
    low, high = (_place(end, limit) for end in _ends(line)[:2])
    middle, zero = HEIGHT / 2, _place(0.0, limit)
    return (
        f'<svg class="range" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{line.measured}, {line.interval}">'
        f'<rect class="allowed" x="{lower:.1f}" y="0" width="{upper - lower:.1f}" height="{HEIGHT}"/>'
        f'<path class="zero" d="M{zero:.1f} 0V{HEIGHT}"/><path class="reach" d="M{low:.1f} {middle}H{high:.1f}"/>'
        f'<circle cx="{_place(change.mean * POINTS, limit):.1f}" cy="{middle}" r="3.2"/></svg>'
    )


def _ends(line: ClaimLine) -> tuple[float, float, float]:
    """Low, high and mean in percentage points; of one seed all three are its difference."""
    change = line.finding.difference
    if change is None or not math.isfinite(change.mean):
        return 0.0, 0.0, 0.0
    low, high = (change.mean if end is None else end for end in (change.low, change.high))
    return low * POINTS, high * POINTS, change.mean * POINTS


def _place(value: float, limit: float) -> float:
    """Where a value in percentage points lies, in px; what is beyond the axis at its end."""
    room = 4.0  # for the dot
    share = (max(-limit, min(limit, value)) + limit) / (2 * limit)
    return room + share * (WIDTH - 2 * room)
