"""One report over several studies: all claims first, then each study as in a report of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.study.claim_lines import CLAIMS_TEXT, ClaimLine, all_claim_lines, unmeasured
from distill.study.claims import NOT_MEASURED, NOT_REPRODUCED, REPRODUCED, UNDECIDED
from distill.study.forest import interval_svg, widest
from distill.study.fragments import esc, verdict_mark
from distill.study.galleries import Shelf
from distill.study.markdown import README, readme
from distill.study.report import page, study_body, words, write_page
from distill.study.results import Tree, load_studies, scale_of

TITLE = "Which findings are reproduced"
ANCHOR = "claims"
HEADS = ("", "claim", "verdict", "measured", "interval (shaded: where it is expected)", "seeds", "by final tokens")


def write_overview(folder: Path) -> Path:
    """Write report.html and README.md for the studies in `folder`, from their results alone; returns the report."""
    studies = load_studies(folder)
    (folder / README).write_text(readme(studies, folder), encoding="utf-8")
    return write_page(folder, build_overview(studies, folder))


def build_overview(studies: Mapping[str, Tree], folder: Path) -> str:
    """The report's text; `studies` by the name of their folder in `folder`."""
    shelf: Shelf = {}
    links = "".join(
        f'<li><a href="#{esc(t["study"])}">{esc(t["title"])}</a> ({esc(scale_of(t))})</li>' for t in studies.values()
    )
    lines = all_claim_lines(studies)
    head = (
        f'<header id="{ANCHOR}"><h1>{esc(TITLE)}</h1>{_counts(lines)}<p>{esc(CLAIMS_TEXT)}</p></header>'
        f"{claim_table([line for line in lines if line.finding.difference])}{_missing(lines)}"
        f"<section><h2>Studies</h2><ul>{links}</ul></section>{words()}"
    )
    told = f'How a verdict is made stands <a href="#{ANCHOR}">above the claims of all studies</a>.'
    bodies = (study_body(tree, folder / name, shelf, told) for name, tree in studies.items())
    return page(TITLE, head + "".join(bodies), shelf)


def claim_table(lines: Sequence[ClaimLine]) -> str:
    """A row a claim, by number; on a phone each is a block of its own."""
    limit = widest(lines)
    rows = "".join(f"<tr>{_cells(line, limit)}</tr>" for line in lines)
    heads = "".join(f"<th>{head}</th>" for head in HEADS)
    return f'<table class="overview"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _cells(line: ClaimLine, limit: float) -> str:
    also = esc(line.where.removeprefix(line.study))
    about = f"{line.what}, {line.short}; {line.source}; {line.scale}"
    final, _, reach = line.final.partition(" (")
    cells = {
        "number": "" if line.number is None else str(line.number),
        "says": f'{esc(line.marked)}<small class="by"><a href="#{esc(line.study)}">{esc(line.study)}</a>{also}: '
        f"{esc(about)}</small>",
        "judged": verdict_mark(line.finding.verdict),
        "measured": _over(f"<b>{esc(line.measured)}</b>", line.interval),
        "where": _over(interval_svg(line, limit), f"expected {line.expected}"),
        "seeds": esc(line.seeds),
        "final": _over(esc(final), reach.removesuffix(")")) if final else "",
    }
    return "".join(
        f'<td class="{name}" data-head="{head}">{text}</td>'
        for (name, text), head in zip(cells.items(), HEADS, strict=True)
    )


def _over(markup: str, small: str) -> str:
    return f'{markup}<small class="by">{esc(small)}</small>'


def _counts(lines: Sequence[ClaimLine]) -> str:
    """How many claims have each verdict."""
    counts = Counter(line.finding.verdict for line in lines)
    shown = (REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_MEASURED)
    marks = "".join(f"<li>{counts[name]} {verdict_mark(name)}</li>" for name in shown if counts[name])
    return f'<ul class="counts">{marks}</ul>'


def _missing(lines: Sequence[ClaimLine]) -> str:
    items = "".join(
        f'<li><a href="#{esc(study)}">{esc(study)}</a>: {esc("; ".join(says))}</li>'
        for study, says in unmeasured(lines).items()
    )
    return f"<section><h2>Not measured yet</h2><ul class='small'>{items}</ul></section>" if items else ""
