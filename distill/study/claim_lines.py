"""A study's claims in words and numbers as people read them: for the report, the overview and Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from distill.study.claims import Claim, Finding
from distill.study.columns import CLAIMED, COLUMNS, Column, show
from distill.study.results import Tree, difference, findings, hardware_of, scale_of
from distill.study.statistics import Interval

NUMBER = re.compile(r"(\d+): (.*)", re.DOTALL)  # `8: iBOT++ beats iBOT`
VALUE_PATH, FINAL_TOKENS = "zeroshot_seg/miou_value", "zeroshot_seg/miou_final"
HEADS = (  # what a reader came for first: a narrow screen shows the left
    "",
    "claim",
    "verdict",
    "measured",
    "95 % interval",
    "expected",
    "seeds",
    "measure",
    "by final tokens",
    "study",
    "source",
    "scale",
)
CLAIMS_TEXT = (
    "How a verdict is made: the difference of two variants is taken seed by seed (a claim about one variant takes its "
    "number itself); its 95 % interval (Student's t) decides. Expected is where it should lie: above zero (+), below "
    "(−), level (0 ± margin), not above (≤) or not below (≥) a bound. Margins are set by the recipe before anything "
    "runs. Reproduced: the whole interval lies there. Not reproduced: it lies wholly elsewhere. Everything else is "
    "undecided, as is anything from one seed. Zero-shot segmentation is judged by the value path; what the final "
    "tokens say stands beside it."
)


@dataclass(frozen=True)
class ClaimLine:
    """One claim; texts have the units of the tables (percentage points for shares)."""

    study: str
    number: int | None  # as in `8: iBOT++ beats iBOT`
    says: str
    what: str  # is measured: `ibotpp − ibot`, or one variant
    metric: str
    short: str  # the metric's name in a narrow table
    expected: str
    measured: str
    interval: str
    seeds: str
    final: str  # for a claim on the value path: the same by the final tokens
    scale: str  # and hardware
    finding: Finding

    @property
    def cells(self) -> dict[str, str]:
        """The line's texts by HEADS."""
        number = "" if self.number is None else str(self.number)
        told = (number, self.says, self.finding.verdict, self.measured, self.interval, self.expected, self.seeds)
        about = (self.short, self.final, self.study, self.finding.claim.source, self.scale)
        return dict(zip(HEADS, (*told, *about), strict=True))


def claim_lines(results: Tree) -> list[ClaimLine]:
    """The study's claims in the recipe's order."""
    return [_line(results, finding) for finding in findings(results)]


def all_claim_lines(studies: Mapping[str, Tree]) -> list[ClaimLine]:
    """The claims of several studies by their numbers; those without one come last."""
    lines = [line for results in studies.values() for line in claim_lines(results)]
    return sorted(lines, key=lambda line: (line.number is None, line.number or 0))  # stable within a study


def _line(results: Tree, finding: Finding) -> ClaimLine:
    claim, change = finding.claim, finding.difference
    column = _column(claim.metric)
    numbered = NUMBER.fullmatch(claim.says)
    signed = claim.first is not None or claim.metric.endswith("_change")
    return ClaimLine(
        study=results["study"],
        number=int(numbered[1]) if numbered else None,
        says=numbered[2] if numbered else claim.says,
        what=f"{claim.second} − {claim.first}" if claim.first else claim.second,
        metric=f"{column.group.split(',')[0]}, {column.title}" if column.group else claim.metric,
        short=column.short,
        expected=_expected(claim, column),
        measured=show(column, change.mean, sign=signed) if change else "not measured",
        interval=_interval(column, change, signed) or "–",
        seeds=_seeds(finding),
        final=_by_final_tokens(results, claim),
        scale=", ".join(word for word in (scale_of(results), hardware_of(results["rows"])) if word),
        finding=finding,
    )


def _column(metric: str) -> Column:
    known = next((c for c in (*COLUMNS, *CLAIMED) if c.key == metric), None)
    return known or Column(metric, "", metric, metric, 1, 3)


def _expected(claim: Claim, column: Column) -> str:
    """`+`, `−`, `0 ± 2.0`, `≤ +4.0` or `≥ −3.5`."""
    lower, upper = claim.allowed
    if claim.expect == "0":
        return f"0 ± {show(column, upper)}"
    bound = {"<=": f"≤ {show(column, upper, sign=True)}", ">=": f"≥ {show(column, lower, sign=True)}"}
    return bound.get(claim.expect, claim.expect.replace("-", "−"))


def _interval(column: Column, change: Interval | None, sign: bool) -> str:
    if change is None or change.low is None:
        return ""
    return f"{show(column, change.low, sign=sign)} to {show(column, change.high, sign=sign)}"


def _seeds(finding: Finding) -> str:
    count = str(finding.difference.n) if finding.difference else "0"
    return f"{count}, bf16 against fp32" if finding.mixed else count


def _by_final_tokens(results: Tree, claim: Claim) -> str:
    """`−1.5 (−1.6 to −1.4)`; empty where the claim is about something else or nothing was measured."""
    if claim.metric != VALUE_PATH or claim.first is None:
        return ""
    column = _column(FINAL_TOKENS)
    change = difference(results, claim.first, claim.second, column)
    if change is None:
        return ""
    interval = _interval(column, change, sign=True)
    return show(column, change.mean, sign=True) + (f" ({interval})" if interval else "")
