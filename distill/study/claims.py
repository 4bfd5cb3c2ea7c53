"""Claims: sentences that a study tests, and the verdict that its numbers allow.

A recipe lists them:

    claims:
      - {says: iBOT++ beats iBOT in zero-shot segmentation, source: Table 3, compare: [ibot, ibotpp],
         metric: zeroshot_seg/miou, expect: +}

`expect` says where `second - first` lies: `+` above zero, `-` below it, `0` within ± `margin` (level), `<=` not above
`margin`, `>=` not below -`margin`. The margin is in the metric's units; `<=` and `>=` take 0 where there is none. With
one variant, `compare: [ibot]`, the claim is about the metric itself. `after` names the results that were known when the
claim, or its margin, was written; without it the claim is older than all of its results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distill.study.statistics import Interval, mean_interval, paired_difference

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
NOT_MEASURED = "not measured"
FEWEST = 3  # seeds for a verdict
EXPECTATIONS = ("+", "-", "0", "<=", ">=")

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Metric -> variant -> seed -> value."""


@dataclass(frozen=True)
class Claim:
    """One statement about `metric(second) - metric(first)`, or about `metric(second)` where there is no first."""

    says: str
    source: str  # where the statement comes from, e.g. "Table 2, rows 1 and 4"
    first: str | None  # variant
    second: str  # variant
    metric: str
    expect: str  # one of EXPECTATIONS
    margin: float | None = None  # in the metric's units
    after: str | None = None  # results known when it was written, e.g. "seeds 0 to 2"

    @property
    def allowed(self) -> tuple[float, float]:
        """Between which values the difference is expected."""
        margin = self.margin or 0.0
        lower = {"+": 0.0, "0": -margin, ">=": -margin}.get(self.expect, -math.inf)
        upper = {"-": 0.0, "0": margin, "<=": margin}.get(self.expect, math.inf)
        return lower, upper


@dataclass(frozen=True)
class Finding:
    """A claim with what was measured: the mean difference, its 95 % interval over seeds, and the verdict."""

    claim: Claim
    difference: Interval | None
    verdict: str
    reason: str
    mixed: bool = False  # some seed pairs runs of different precision
    elsewhere: bool = False  # some seed pairs runs of different hardware
    retaught: bool = False  # some student's teacher was trained by the same recipe, but is not the one that is scored

    def as_dict(self) -> dict[str, Any]:
        """Flat and JSON-able, one entry of claims.json."""
        measured = asdict(self.difference) if self.difference else {"mean": None, "low": None, "high": None, "n": 0}
        unequal = {"mixed": self.mixed, "elsewhere": self.elsewhere, "retaught": self.retaught}
        return {**asdict(self.claim), **measured, "verdict": self.verdict, "reason": self.reason, **unequal}


def verdict(claim: Claim, difference: Interval | None) -> tuple[str, str]:
    """The verdict and why.

    Reproduced when the whole interval lies where the claim expects the difference, not reproduced when it lies wholly
    elsewhere. Everything else, and anything from fewer than three seeds, is undecided.
    """
    lower, upper = claim.allowed
    if difference is None:
        return NOT_MEASURED, "no seed has both variants" if claim.first else "no seed has the variant"
    if not math.isfinite(difference.mean):
        return UNDECIDED, "not a finite number"
    if difference.n < FEWEST or difference.low is None or difference.high is None:
        agrees = "agrees" if _within(claim, difference.mean, difference.mean) else "disagrees"
        return UNDECIDED, f"one seed, which {agrees}" if difference.n == 1 else f"two seeds, whose mean {agrees}"
    if _within(claim, difference.low, difference.high):
        return REPRODUCED, "the whole interval lies there"
    if difference.high < lower or difference.low > upper:
        return NOT_REPRODUCED, "no part of the interval lies there"
    return UNDECIDED, "only a part of the interval lies there"


def _within(claim: Claim, low: float, high: float) -> bool:
    """Whether an interval lies where the claim expects it. Zero has no sign, but a margin's end belongs to it."""
    lower, upper = claim.allowed
    if claim.expect in ("+", "-"):
        return lower < low and high < upper
    return lower <= low and high <= upper


def judge(claims: list[Claim], scores: Scores) -> list[Finding]:
    """One finding a claim, in order."""
    findings = []
    for claim in claims:
        difference = _difference(claim, scores.get(claim.metric, {}))
        findings.append(Finding(claim, difference, *verdict(claim, difference)))
    return findings


def _difference(claim: Claim, scores: Mapping[str, Mapping[int, float]]) -> Interval | None:
    second = scores.get(claim.second, {})
    if claim.first is not None:
        return paired_difference(scores.get(claim.first, {}), second)
    return mean_interval(list(second.values())) if second else None
