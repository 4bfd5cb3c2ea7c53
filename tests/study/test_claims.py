from __future__ import annotations

import pytest

from distill.study.claims import NOT_MEASURED, NOT_REPRODUCED, REPRODUCED, UNDECIDED, Claim, judge, verdict
from distill.study.statistics import Interval


def claim(expect: str, margin: float | None = None) -> Claim:
    return Claim("b is as expected", "Table 1", "a", "b", "task/x", expect, margin)


@pytest.mark.parametrize(
    ("expect", "margin", "low", "high", "expected"),
    [
        ("+", None, 0.1, 0.5, REPRODUCED),
        ("+", None, -0.1, 0.5, UNDECIDED),
        ("+", None, 0.0, 0.5, UNDECIDED),
        ("+", None, -0.5, -0.1, NOT_REPRODUCED),
        ("-", None, -0.5, -0.1, REPRODUCED),
        ("-", None, 0.1, 0.5, NOT_REPRODUCED),
        ("-", None, -0.1, 0.5, UNDECIDED),
        ("0", 0.2, -0.1, 0.2, REPRODUCED),
        ("0", 0.2, -0.1, 0.3, UNDECIDED),
        ("0", 0.2, 0.1, 0.3, UNDECIDED),
        ("0", 0.2, 0.3, 0.4, NOT_REPRODUCED),
        ("0", 0.2, -0.4, -0.3, NOT_REPRODUCED),
        ("<=", 0.2, -5.0, 0.2, REPRODUCED),
        ("<=", 0.2, 0.1, 0.3, UNDECIDED),
        ("<=", 0.2, 0.3, 0.4, NOT_REPRODUCED),
        ("<=", None, 0.0, 0.0, REPRODUCED),
        (">=", 0.2, -0.2, 5.0, REPRODUCED),
        (">=", 0.2, -0.3, 0.1, UNDECIDED),
        (">=", 0.2, -0.4, -0.3, NOT_REPRODUCED),
        ("+", None, 0.0, 0.0, UNDECIDED),
        ("+", None, float("nan"), float("nan"), UNDECIDED),
        ("-", None, float("nan"), float("nan"), UNDECIDED),
    ],
)
def test_verdicts(expect: str, margin: float | None, low: float, high: float, expected: str) -> None:
    assert verdict(claim(expect, margin), Interval((low + high) / 2, low, high, 3))[0] == expected


@pytest.mark.parametrize(("mean", "word"), [(0.3, "agrees"), (-0.3, "disagrees")])
def test_one_seed_never_decides_but_says_which_way_it_points(mean: float, word: str) -> None:
    outcome, reason = verdict(claim("+"), Interval(mean, None, None, 1))
    assert outcome == UNDECIDED
    assert reason.split()[-1] == word


def test_two_seeds_never_decide() -> None:
    assert verdict(claim("+"), Interval(0.3, 0.2, 0.4, 2)) == (UNDECIDED, "two seeds, whose mean agrees")
    assert verdict(claim("-"), Interval(0.3, 0.2, 0.4, 2)) == (UNDECIDED, "two seeds, whose mean disagrees")


def test_nothing_measured_has_no_verdict() -> None:
    assert verdict(claim("+"), None)[0] == NOT_MEASURED


def test_judge_takes_second_minus_first_of_the_claims_metric() -> None:
    lower = Claim("b is lower", "Table 1", "a", "b", "train/x", "-")
    scores = {"train/x": {"a": {0: 3.0, 1: 4.0, 2: 5.0}, "b": {0: 1.0, 1: 2.1, 2: 2.9}}}
    finding = judge([lower], scores)[0]
    assert finding.difference is not None
    assert finding.difference.mean == pytest.approx(-2.0)
    assert finding.verdict == REPRODUCED
    entry = finding.as_dict()
    assert entry["mean"] == pytest.approx(-2.0)
    assert {"says", "source", "expect", "metric", "low", "high", "n", "verdict", "reason"} <= entry.keys()


def test_a_claim_about_one_variant_takes_the_metric_itself() -> None:
    alone = Claim("b does not fall", "Figure 2", None, "b", "train/x", ">=", 0.1)
    scores = {"train/x": {"a": {0: 5.0}, "b": {0: -1.0, 1: -1.1, 2: -0.9}}}
    finding = judge([alone], scores)[0]
    assert finding.difference is not None
    assert (finding.difference.mean, finding.difference.n) == (pytest.approx(-1.0), 3)
    assert finding.verdict == NOT_REPRODUCED
    assert judge([alone], {})[0].reason == "no seed has the variant"
