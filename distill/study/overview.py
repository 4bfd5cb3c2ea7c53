"""One report over several studies: all claims first, then each study as in a report of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from distill.study.claim_lines import CLAIMS_TEXT, HEADS, ClaimLine, all_claim_lines
from distill.study.fragments import esc
from distill.study.galleries import Shelf
from distill.study.markdown import README, readme
from distill.study.report import page, study_body, words, write_page
from distill.study.results import Tree, load_studies, scale_of

TITLE = "Which findings are reproduced"


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
    head = (
        f"<header><h1>{esc(TITLE)}</h1><p>{esc(CLAIMS_TEXT)}</p></header>"
        f"{claim_table(studies)}{words()}"
        f"<section><h2>Studies</h2><ul>{links}</ul></section>"
    )
    return page(TITLE, head + "".join(study_body(t, folder / n, shelf) for n, t in studies.items()), shelf)


def claim_table(studies: Mapping[str, Tree]) -> str:
    """A row a claim, by number."""
    rows = "".join(f"<tr>{_cells(line)}</tr>" for line in all_claim_lines(studies))
    heads = "".join(f"<th>{head}</th>" for head in HEADS)
    return (
        f'<div class="scroll"><table class="overview"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cells(line: ClaimLine) -> str:
    verdict = line.finding.verdict
    shown = {head: esc(text) for head, text in line.cells.items()}
    shown["verdict"] = f'<span class="verdict {verdict.replace(" ", "-")}">{esc(verdict)}</span>'
    shown["study"] = f'<a href="#{esc(line.study)}">{esc(line.study)}</a>{esc(line.where.removeprefix(line.study))}'
    return "".join(f"<td{' class=says' if head == 'claim' else ''}>{text}</td>" for head, text in shown.items())
