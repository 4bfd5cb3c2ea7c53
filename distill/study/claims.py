"""Claims: sentences that a study tests, and the verdict that its numbers allow.

A recipe lists them:

    claims:
      - {says: iBOT++ beats iBOT in zero-shot segmentation, source: Table 3, compare: [ibot, ibotpp],
         metric: zeroshot_seg/miou, expect: +}

`expect` is the sign of `second - first`: `+`, `-`, or `0` for "level", which needs a `margin` in the metric's units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distill.study.statistics import Interval, paired_difference

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
SIGNS = ("+", "-", "0")

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Metric -> variant -> seed -> value."""


@dataclass(frozen=True)
class Claim:
    """One statement about `metric(second) - metric(first)`."""

    says: str
    source: str  # where the statement comes from, e.g. "Table 2, rows 1 and 4"
    first: str  # variant
    second: str  # variant
    metric: str
    expect: str  # one of SIGNS
    margin: float | None = None  # with expect "0": largest difference that still counts as level, in the metric's units


@dataclass(frozen=True)
class Finding:
    """A claim with what was measured: the mean difference, its 95 % interval over seeds, and the verdict."""

    claim: Claim
    difference: Interval | None
    verdict: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Flat and JSON-able, one entry of claims.json."""
        measured = asdict(self.difference) if self.difference else {"mean": None, "low": None, "high": None, "n": 0}
        return {**asdict(self.claim), **measured, "verdict": self.verdict, "reason": self.reason}


def verdict(expect: str, margin: float | None, difference: Interval | None) -> tuple[str, str]:
    """The verdict and why.

    A sign is reproduced when the whole interval has it, not reproduced when the whole interval has the other one.
    "Level" is reproduced when the whole interval lies within +-margin, not reproduced when it lies wholly outside.
    Everything else, and anything from one seed, is undecided.
    """
    if difference is None:
        return UNDECIDED, "no seed has both variants"
    if difference.low is None or difference.high is None:
        return UNDECIDED, f"one seed; it {'agrees' if _agrees(expect, margin, difference.mean) else 'disagrees'}"
    low, high = difference.low, difference.high
    if expect == "0":
        bound = margin or 0.0
        if -bound <= low and high <= bound:
            return REPRODUCED, f"the interval lies within ±{bound:g}"
        if low > bound or high < -bound:
            return NOT_REPRODUCED, f"the interval lies outside ±{bound:g}"
        return UNDECIDED, f"the interval crosses ±{bound:g}"
    if low <= 0 <= high:
        return UNDECIDED, "the interval contains zero"
    if (low > 0) == (expect == "+"):
        return REPRODUCED, "the whole interval has the expected sign"
    return NOT_REPRODUCED, "the whole interval has the opposite sign"


def _agrees(expect: str, margin: float | None, mean: float) -> bool:
    if expect == "0":
        return abs(mean) <= (margin or 0.0)
    return mean > 0 if expect == "+" else mean < 0


def judge(claims: list[Claim], scores: Scores) -> list[Finding]:
    """One finding a claim, in order."""
    findings = []
    for claim in claims:
        of = scores.get(claim.metric, {})
        difference = paired_difference(of.get(claim.first, {}), of.get(claim.second, {}))
        findings.append(Finding(claim, difference, *verdict(claim.expect, claim.margin, difference)))
    return findings
