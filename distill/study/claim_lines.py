"""A study's claims in words and numbers as people read them: for the report, the overview and Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.study.averages import is_average, rows_of
from distill.study.claims import Claim, Finding
from distill.study.columns import CLAIMED, COLUMNS, Column, show
from distill.study.results import Tree, difference, findings, hardware_of, scale_of
from distill.study.statistics import Interval
from distill.study.unequal import WORDS

NUMBER = re.compile(r"(\d+): (.*)", re.DOTALL)  # `8: iBOT++ beats iBOT`
VALUE_PATH, FINAL_TOKENS = "zeroshot_seg/miou_value", "zeroshot_seg/miou_final"
MARK = "†"  # of a claim that is younger than some of its results
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
    "(−), level (0 ± margin), not above (≤) or not below (≥) a bound. Reproduced: the whole interval lies there. Not "
    "reproduced: it lies wholly elsewhere. Everything else is undecided, as is anything from fewer than three seeds. "
    "A claim of the paper's has its sign and margin from the paper's numbers; of one whose source is this study, "
    "reproduced means that it holds. † marks a claim that was written, or had its margin set, when results of its were "
    "known already; its source says which. "
    "VARIANT.average is the averaged trunk, the network that teaches a student. Intervals cover the seeds of training "
    "alone: one world of scenes, one set of test images. Zero-shot segmentation is judged by the value path; what the "
    "final tokens say stands beside it."
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
    scaled: float  # by how much the shown number is larger than the metric: 100 for percentage points
    expected: str
    measured: str
    interval: str
    seeds: str
    final: str  # for a claim on the value path: the same by the final tokens
    scale: str  # and hardware
    finding: Finding
    also: tuple[str, ...] = ()  # other studies that make this claim of the same runs

    @property
    def cells(self) -> dict[str, str]:
        """The line's texts by HEADS."""
        number = "" if self.number is None else str(self.number)
        told = (number, self.marked, self.finding.verdict, self.measured, self.interval, self.expected)
        about = (self.seeds, self.short, self.final, self.where, self.source, self.scale)
        return dict(zip(HEADS, (*told, *about), strict=True))

    @property
    def marked(self) -> str:
        """What it says, with a mark if it was written after results of its were known."""
        return f"{self.says} {MARK}" if self.finding.claim.after else self.says

    @property
    def source(self) -> str:
        """Where the statement comes from, and what was known by then."""
        claim = self.finding.claim
        return f"{claim.source}; written after {claim.after}" if claim.after else claim.source

    @property
    def where(self) -> str:
        """The study, and others that say the same of the same runs."""
        return self.study if not self.also else f"{self.study} (the same runs: {', '.join(self.also)})"


def claim_lines(results: Tree) -> list[ClaimLine]:
    """The study's claims in the recipe's order."""
    return [_line(results, finding) for finding in findings(results)]


def all_claim_lines(studies: Mapping[str, Tree]) -> list[ClaimLine]:
    """The claims of several studies by their numbers; those without one come last. A claim that several studies make
    of the same runs is there once, in the words of the one that has most claims of its number.
    """
    every = [(_same_runs(tree, line), line) for tree in studies.values() for line in claim_lines(tree)]
    having = Counter((line.study, line.number) for _, line in every)
    alike: dict[Any, list[ClaimLine]] = {}
    for key, line in every:
        alike.setdefault(key, []).append(line)
    told = {key: max(lines, key=lambda line: having[line.study, line.number]) for key, lines in alike.items()}
    kept = [
        replace(line, also=tuple(other.study for other in alike[key] if other is not line))
        for key, line in every
        if line is told[key]  # of equals the first
    ]
    return sorted(kept, key=lambda line: (line.number is None, line.number or 0))  # stable within a study


def unmeasured(lines: Sequence[ClaimLine]) -> dict[str, list[str]]:
    """The claims without a measurement, as they are numbered, by study."""
    missing: dict[str, list[str]] = {}
    for line in lines:
        if line.finding.difference is None:
            missing.setdefault(line.study, []).append(f"{line.number}: {line.says}" if line.number else line.says)
    return missing


def _same_runs(results: Tree, line: ClaimLine) -> Any:
    """Equal for two lines that ask the same of the same runs."""
    claim = line.finding.claim
    if line.finding.difference is None:
        return line.study, claim.says
    names = [name for name in (claim.first, claim.second) if name]
    rows = [{row["seed"]: row["address"] for row in rows_of(results, name)} for name in names]
    counted = sorted(set.intersection(*map(set, rows)))  # a seed that one side lacks is not
    sides = [(is_average(name), *(own[seed] for seed in counted)) for name, own in zip(names, rows)]
    return line.number, claim.metric, claim.expect, claim.margin, *sides


def _line(results: Tree, finding: Finding) -> ClaimLine:
    claim, change = finding.claim, finding.difference
    column = _column(claim.metric)
    numbered = NUMBER.fullmatch(claim.says)
    rows = [row for name in (claim.first, claim.second) if name for row in rows_of(results, name)]
    signed = claim.first is not None or claim.metric.endswith("_change")
    return ClaimLine(
        study=results["study"],
        number=int(numbered[1]) if numbered else None,
        says=numbered[2] if numbered else claim.says,
        what=f"{claim.second} − {claim.first}" if claim.first else claim.second,
        metric=f"{column.group.split(',')[0]}, {column.title}" if column.group else claim.metric,
        short=column.short,
        scaled=column.scale,
        expected=_expected(claim, column),
        measured=show(column, change.mean, sign=signed) if change else "not measured",
        interval=_interval(column, change, signed) or "–",
        seeds=_seeds(finding),
        final=_by_final_tokens(results, claim),
        scale=", ".join(word for word in (scale_of(results), hardware_of(rows)) if word),
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
    return ", ".join([count, *(words for flag, words in WORDS.items() if getattr(finding, flag))])


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
