"""The parts of report.html, each a pure function from results to markup."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from distill.study.averages import shown, title_of
from distill.study.claim_lines import MARK, claim_lines
from distill.study.columns import COSTS, SCORES, Column, show
from distill.study.curves import Curve
from distill.study.effects import effects_svg
from distill.study.plots import limits, patch_loss_svg
from distill.study.rates import rate_columns, rate_rows
from distill.study.results import Tree, basis, chance, difference, mean_of, measured
from distill.study.table import best
from distill.study.unequal import WORDS, unequal


def esc(value: Any) -> str:
    return html.escape(str(value))


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def verdict_mark(verdict: str) -> str:
    """A verdict in its colour."""
    return f'<span class="verdict {verdict.replace(" ", "-")}">{esc(verdict)}</span>'


# ------------------------------------------------------------------------------------------------ numbers


def score_table(results: Tree) -> str:
    """Variants by scores, a bar under each as long as its share of the column's best (best over it for errors)."""
    rows = []
    columns = measured(results, SCORES)
    for variant in shown(results):
        cells = []
        for column in columns:
            mean = mean_of(results, variant, column)
            top = best(results, column)
            text = esc(show(column, mean.mean, mean.half)) if mean else "–"
            share = _share(mean.mean, top, column) if mean and top else 0
            text = f"<b>{text}</b>" if mean and mean.mean == top else text
            cells.append(f'{text}<i class="bar" style="width:{share}%"></i>')
        rows.append((variant, cells))
    guesses = [chance(results, column) for column in columns]
    known = any(g is not None for g in guesses)
    last = ["" if g is None else esc(show(c, g)) for c, g in zip(columns, guesses)] if known else None
    return _table(results, columns, rows, last)


def _share(value: float, top: float, column: Column) -> int:
    """Length of a bar in percent: 100 for the best of a column, whichever way is better."""
    ratio = value / top if column.higher_is_better or not value else top / value
    return round(100 * max(0.0, ratio))


def cost_table(results: Tree) -> str:
    """Variants by what they cost, means over seeds."""
    columns = measured(results, COSTS)
    means = {v: [mean_of(results, v, c) for c in columns] for v in results["variants"]}
    rows = [(v, [esc(show(c, m.mean)) if m else "–" for c, m in zip(columns, of)]) for v, of in means.items()]
    return _table(results, columns, rows)


def _table(
    results: Tree, columns: Sequence[Column], rows: Sequence[tuple[str, list[str]]], last: list[str] | None = None
) -> str:
    """A row a variant under grouped headings, with what it stands on; `last` is a final row for what guessing gets."""
    groups = [(g, list(cs)) for g, cs in groupby(columns, key=lambda c: c.group)]
    top = "".join(f'<th colspan="{len(cs)}" class="group">{esc(g)}</th>' for g, cs in groups)
    heads = "".join(f"<th>{esc(c.title)}</th>" for c in columns)
    stands = {variant: basis(results, variant) for variant, _ in rows}
    unlike = len({hardware for _, hardware in stands.values()} - {""}) > 1  # one for all stands among the facts
    body = []
    for variant, cells in rows:
        head = f'<span class="name">{esc(variant)}</span><span class="about">{esc(title_of(results, variant))}</span>'
        seeds, hardware = map(esc, stands[variant])
        about = f'<td class="seeds">{seeds}</td>' + (f'<td class="made">{hardware}</td>' if unlike else "")
        body.append(f'<tr><th scope="row">{head}</th>{_cells(cells)}{about}</tr>')
    if last is not None:
        body.append(f'<tr class="guess"><th scope="row">guessing</th>{_cells([*last, *[""] * (1 + unlike)])}</tr>')
    made = '<th class="made">hardware</th>' if unlike else ""
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><td></td>{top}<td colspan="{1 + unlike}"></td></tr>'
        f"<tr><th>variant</th>{heads}<th>seeds</th>{made}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in cells)


def effect_figure(results: Tree) -> str:
    """The differences as a picture, one panel a metric."""
    svg = effects_svg(results)
    if not svg:
        return ""
    source = data_uri(svg.encode(), "svg+xml")
    return f'<div class="scroll"><img src="{source}" alt="differences with 95 % intervals"></div>'


def paper_table(results: Tree) -> str:
    """The published numbers of the variants that the paper has; nothing where a study names none."""
    paper = results.get("paper")
    if not paper:
        return ""
    heads = "".join(f"<th>{esc(c)}</th>" for c in paper["columns"])
    body = []
    for variant, values in paper["values"].items():
        head = f'<span class="name">{esc(variant)}</span><span class="about">{esc(title_of(results, variant))}</span>'
        body.append(f'<tr><th scope="row">{head}</th>{_cells(["–" if v is None else esc(v) for v in values])}</tr>')
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><th>{esc(paper["source"])}</th>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def difference_table(results: Tree) -> str:
    """Paired differences, second minus first, for every comparison of the recipe."""
    columns = measured(results, SCORES)
    heads = "".join(f"<th>{esc(c.short)}</th>" for c in columns)
    rows = []
    for pair in results["compare"]:
        cells = []
        for column in columns:
            change = difference(results, pair["first"], pair["second"], column)
            text = show(column, change.mean, change.half, sign=True) if change else "–"
            sure = change is not None and change.low is not None and (change.low > 0 or (change.high or 0) < 0)
            sign = {True: "up", False: "down", None: ""}[column.better(change.mean) if change else None]
            cells.append(f'<td class="{sign}{" sure" if sure else ""}">{esc(text)}</td>')
        names = f"{esc(pair['first'])} → {esc(pair['second'])}"
        apart = [WORDS[flag] for flag, holds in unequal(results, pair["first"], pair["second"]).items() if holds]
        changes = esc("; ".join([f"changes {', '.join(pair['factors'])}", *apart]))
        rows.append(f'<tr><th scope="row">{names}<small class="by">{changes}</small></th>{"".join(cells)}</tr>')
    if not rows:
        return ""
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><th>difference, points</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def claim_list(results: Tree) -> str:
    """Every claim with its verdict, what was measured on how many seeds of which runs, and where it comes from."""
    items = []
    for line in claim_lines(results):
        claim, finding = line.finding.claim, line.finding
        final = f" From the final tokens: {line.final}." if line.final else ""
        mark = f" {MARK}" if claim.after else ""
        items.append(
            f"<li>{verdict_mark(finding.verdict)}"
            f"<div><p>{esc(claim.says)}.{mark}</p><p class='small'>{esc(line.metric)}: {esc(line.what)} = "
            f"<b>{esc(line.measured)}</b> (95 % interval {esc(line.interval)}), expected {esc(line.expected)}: "
            f"{esc(finding.reason)}.{esc(final)} Seeds: {esc(line.seeds)}. Scale: {esc(line.scale)}. "
            f"Source: {esc(line.source)}.</p></div></li>"
        )
    return f'<ul class="claims">{"".join(items)}</ul>' if items else ""


# ------------------------------------------------------------------------------------------------ pictures


def loss_figures(results: Tree, curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """One small plot a variant: patch loss on masked and on visible tokens, on shared axes."""
    terms = ("patch_masked", "patch_visible")
    drawn = {v: c for v, c in curves.items() if any(t in c for t in terms)}
    bounds = limits(list(drawn.values()), terms)
    parts = []
    for variant, group in drawn.items():
        source = data_uri(patch_loss_svg(group, bounds).encode(), "svg+xml")
        caption = f'<span class="name">{esc(variant)}</span>{esc(title_of(results, variant))}'
        parts.append(
            f"<figure><figcaption>{caption}</figcaption>"
            f'<img src="{source}" alt="patch loss of {esc(variant)} over the steps"></figure>'
        )
    return f'<div class="plots">{"".join(parts)}</div>' if parts else ""


# ------------------------------------------------------------------------------------------------ settings


def rate_table(rates: Tree) -> str:
    """The learning-rate check: arms by rates."""
    columns, factors = rate_columns(rates), rates["factors"]
    top = "".join(f'<th colspan="{len(factors)}" class="group">{esc(c.short)}</th>' for c in columns)
    heads = "".join(f"<th>x {f:g}</th>" for _ in columns for f in factors)
    body = "".join(
        f'<tr><th scope="row">{esc(row[0])}</th>{_cells([*map(esc, row[1:])])}</tr>' for row in rate_rows(rates)
    )
    return (
        f'<div class="scroll"><table class="scores rates"><thead><tr><td colspan="2"></td>{top}</tr>'
        f"<tr><th>variant</th><th>rate</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def switch_table(results: Tree) -> str:
    """The factor keys of every variant (those that differ), and its teacher."""
    rows = {row["variant"]: row for row in reversed(results["rows"])}
    keys = sorted({k for row in rows.values() for k in row["switches"] if k != "teacher.source"})
    keys = [k for k in keys if len({str(row["switches"].get(k)) for row in rows.values()}) > 1]
    heads = "".join(f"<th>{esc(k)}</th>" for k in keys)
    body = []
    for variant, about in results["variants"].items():
        if variant in rows:
            cells = "".join(f"<td>{esc(rows[variant]['switches'].get(k))}</td>" for k in keys)
            body.append(f'<tr><th scope="row">{esc(variant)}</th>{cells}<td>{esc(about["teacher"] or "–")}</td></tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th>variant</th>{heads}<th>frozen teacher</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
