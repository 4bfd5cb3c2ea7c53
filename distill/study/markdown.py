"""The results of several studies as Markdown: README.md beside them, and the claim table of the project's README."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.errors import UserError
from distill.study.averages import is_average, rows_of, shown, title_of
from distill.study.claim_lines import CLAIMS_TEXT, HEADS, MARK, ClaimLine, all_claim_lines, unmeasured
from distill.study.columns import SCORES, show
from distill.study.rates import load_rates, rate_heads, rate_rows, rates_text
from distill.study.results import Tree, basis, mean_of, measured, scale_of

README = "README.md"
BEGIN, END = "<!-- claims -->", "<!-- /claims -->"  # around the table, as in the project's README
SHORT_HEADS = tuple(head for head in HEADS if head not in ("source", "scale"))


def readme(studies: Mapping[str, Tree], folder: Path) -> str:
    """The page: all claims, then each study's scores with what they took and how to make a row again.

    `studies` by the name of their folder in `folder`.
    """
    parts = [
        "# Results of the studies",
        "Written by `distill study --report` from the results in this folder. Differences of shares are in percentage "
        f"points. {CLAIMS_TEXT}",
        claim_table(studies),
        *(study_part(results, load_rates(folder / name)) for name, results in studies.items()),
    ]
    return "\n\n".join(parts) + "\n"


def claim_table(studies: Mapping[str, Tree]) -> str:
    """A row a claim, by number."""
    return _claims(all_claim_lines(studies), HEADS)


def short_claims(studies: Mapping[str, Tree]) -> str:
    """A row for each claim that was measured, in the columns of SHORT_HEADS, and a line a study with the others."""
    lines = all_claim_lines(studies)
    told = [line for line in lines if line.finding.difference]
    parts = [_claims(told, SHORT_HEADS)]
    if any(line.finding.claim.after for line in told):
        parts.append(f"{MARK} written, or its margin set, when results of the claim were known already.")
    missing = unmeasured(lines)
    if missing:
        parts.append("Not measured yet:")
        parts.append("\n".join(f"- `{study}`: {'; '.join(says)}" for study, says in missing.items()))
    return "\n\n".join(parts)


def _claims(lines: Sequence[ClaimLine], heads: Sequence[str]) -> str:
    rows = []
    for line in lines:
        cells = {**line.cells, "verdict": f"**{line.finding.verdict}**"}
        rows.append([cells[head] for head in heads])
    return table(heads, rows)


def study_part(results: Tree, rates: Tree | None = None) -> str:
    """A study's scores (mean ± half the 95 % interval), what they took, the command, and its check of the rates."""
    columns = measured(results, SCORES)
    heads = ["variant", *(c.short for c in columns), "seeds", "minutes", "hardware", "code"]
    rows = []
    for variant in shown(results):
        own = rows_of(results, variant)
        means = [mean_of(results, variant, c) for c in columns]
        numbers = [show(c, m.mean, m.half) if m else "–" for c, m in zip(columns, means)]
        codes = ", ".join(sorted({f"`{r['code']}`" for r in own}))
        seeds, hardware = basis(results, variant)
        about = [seeds, "–" if is_average(variant) else _minutes(own), hardware, codes]
        rows.append([f"`{variant}`: {title_of(results, variant)}", *numbers, *about])
    parts = [f"## {results['title']} (`{results['study']}`)", results["purpose"]]
    if results["missing"]:
        parts.append(f"Not finished: {', '.join(results['missing'])}.")
    parts += [
        f"Scale: {scale_of(results)}. {results['steps']:,} steps of {results['batch']:,} images "
        "(unless a variant says otherwise); "
        f"{results['eval']['samples']:,} test images of `{results['eval']['dataset']}`. "
        "Minutes: training and evaluation of one seed.",
        table(heads, rows),
        f"One row anew (VARIANT as in the table, without .average): `{results['command']} --only VARIANT --again`",
    ]
    if rates:
        parts += [f"Learning rates. {rates_text(rates)}", table(rate_heads(rates), rate_rows(rates))]
    return "\n\n".join(parts)


def _minutes(rows: Sequence[Tree]) -> str:
    """Mean wall time of a cell."""
    seconds = [row["cost"].get("train_seconds", 0.0) + row["cost"].get("eval_seconds", 0.0) for row in rows]
    return f"{math.fsum(seconds) / len(seconds) / 60:.1f}" if seconds else "–"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def check_place(page: Path) -> tuple[str, str]:
    """What stands before and after the claim table of a Markdown file. UserError where there is no place for one."""
    if not page.is_file():
        raise UserError(f"--claims {page}: there is no such file. Give a Markdown file with {BEGIN} and {END} in it.")
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"{page} has no place for the claim table: write {BEGIN} and {END} on lines of their own.")
    return before, after


def put_claims(page: Path, studies: Mapping[str, Tree]) -> None:
    """Puts the claim table into a Markdown file, between its marks."""
    before, after = check_place(page)
    page.write_text(f"{before}{BEGIN}\n{short_claims(studies)}\n{END}{after}", encoding="utf-8")
