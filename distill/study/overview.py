"""One report over several studies: all claims first, then each study as in a report of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from distill.study.claim_lines import CLAIMS_TEXT, all_claim_lines
from distill.study.fragments import esc
from distill.study.galleries import Shelf
from distill.study.markdown import README, readme
from distill.study.report import page, study_body, write_page
from distill.study.results import Tree, load_studies

TITLE = "Which findings are reproduced"
HEADS = (  # what a reader came for first: a narrow screen shows the left
    "",
    "claim",
    "verdict",
    "difference",
    "95 % interval",
    "expected",
    "seeds",
    "study",
    "measure",
    "source",
    "scale",
)


def write_overview(folder: Path) -> Path:
    """Write report.html and README.md for the studies in `folder`, from their results alone; returns the report."""
    studies = load_studies(folder)
    (folder / README).write_text(readme(studies, folder), encoding="utf-8")
    return write_page(folder, build_overview(studies, folder))


def build_overview(studies: Mapping[str, Tree], folder: Path) -> str:
    """The report's text; `studies` by the name of their folder in `folder`."""
    shelf: Shelf = {}
    links = "".join(f'<li><a href="#{esc(t["study"])}">{esc(t["title"])}</a></li>' for t in studies.values())
    head = (
        f"<header><h1>{esc(TITLE)}</h1><p>{esc(CLAIMS_TEXT)}</p></header>"
        f"{claim_table(studies)}<section><h2>Studies</h2><ul>{links}</ul></section>"
    )
    return page(TITLE, head + "".join(study_body(t, folder / n, shelf) for n, t in studies.items()), shelf)


def claim_table(studies: Mapping[str, Tree]) -> str:
    """A row a claim, by number."""
    rows = []
    for line in all_claim_lines(studies):
        verdict = line.finding.verdict
        badge = f'<span class="verdict {verdict.replace(" ", "-")}">{esc(verdict)}</span>'
        link = f'<a href="#{esc(line.study)}">{esc(line.study)}</a>'
        numbers = [line.measured, line.interval, line.expected, line.seeds]
        left = [esc(line.number or ""), esc(line.says), badge, *map(esc, numbers), link]
        cells = [*left, *map(esc, (line.metric, line.finding.claim.source, line.scale))]
        body = "".join(f"<td{' class=says' if i == 1 else ''}>{cell}</td>" for i, cell in enumerate(cells))
        rows.append(f"<tr>{body}</tr>")
    heads = "".join(f"<th>{head}</th>" for head in HEADS)
    return (
        f'<div class="scroll"><table class="overview"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
