"""A study's claims in words and numbers as people read them: for the report, the overview and Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from distill.study.claims import Finding
from distill.study.columns import COLUMNS, TERMS, Column, show
from distill.study.results import Tree, findings, hardware_of, scale_of

NUMBER = re.compile(r"(\d+): (.*)", re.DOTALL)  # `8: iBOT++ beats iBOT`
CLAIMS_TEXT = (
    "How a verdict is made: the difference of two variants is taken seed by seed; its 95 % interval (Student's t) "
    "decides. A sign (+ or −) is reproduced when the whole interval has it, not reproduced when the whole interval has "
    "the other one. Level (0 ± margin) is reproduced when the whole interval lies within the margin, which the recipe "
    "sets before anything runs, and not reproduced when it lies wholly outside. Everything else is undecided, as is "
    "anything from one seed."
)


@dataclass(frozen=True)
class ClaimLine:
    """One claim; texts have the units of the tables (percentage points for shares)."""

    study: str
    number: int | None  # as in `8: iBOT++ beats iBOT`
    says: str
    metric: str
    expected: str
    measured: str
    interval: str
    seeds: int
    scale: str  # and hardware
    finding: Finding


def claim_lines(results: Tree) -> list[ClaimLine]:
    """The study's claims in the recipe's order."""
    scale = ", ".join(word for word in (scale_of(results), hardware_of(results["rows"])) if word)
    return [_line(results["study"], scale, finding) for finding in findings(results)]


def all_claim_lines(studies: Mapping[str, Tree]) -> list[ClaimLine]:
    """The claims of several studies by their numbers; those without one come last."""
    lines = [line for results in studies.values() for line in claim_lines(results)]
    return sorted(lines, key=lambda line: (line.number is None, line.number or 0))  # stable within a study


def _line(study: str, scale: str, finding: Finding) -> ClaimLine:
    claim, change = finding.claim, finding.difference
    column = next((c for c in (*COLUMNS, *TERMS) if c.key == claim.metric), None)
    column = column or Column(claim.metric, "", claim.metric, claim.metric, 1, 3)
    numbered = NUMBER.fullmatch(claim.says)
    sign = {"-": "−"}.get(claim.expect, claim.expect)
    bounded = change is not None and change.low is not None
    return ClaimLine(
        study=study,
        number=int(numbered[1]) if numbered else None,
        says=numbered[2] if numbered else claim.says,
        metric=f"{column.group.split(',')[0]}, {column.title}" if column.group else claim.metric,
        expected=f"0 ± {show(column, claim.margin)}" if claim.expect == "0" else sign,
        measured=show(column, change.mean, sign=True) if change else "not measured",
        interval=f"{show(column, change.low, sign=True)} to {show(column, change.high, sign=True)}"
        if change is not None and bounded
        else "–",
        seeds=change.n if change else 0,
        scale=scale,
        finding=finding,
    )
