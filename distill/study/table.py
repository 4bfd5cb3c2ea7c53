"""The table at the end of a study, for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.study.averages import shown
from distill.study.columns import COLUMNS, COSTS, SCORES, Column, show
from distill.study.rates import rate_heads, rate_rows, rates_text
from distill.study.results import Tree, chance, findings, mean_of, measured, scale_of

LEFT_OUT = ("cost/peak_memory_mb", "cost/teacher_forwards")  # in results.json and the report
STYLES = {"reproduced": "green", "not reproduced": "red", "undecided": "yellow", "not measured": "dim"}


def best(results: Tree, column: Column) -> float | None:
    """The best mean of a score column over variants; None for a column without values or without a better and worse."""
    if column in COSTS or column.higher_is_better is None:
        return None
    means = [m.mean for v in shown(results) if (m := mean_of(results, v, column)) is not None]
    choose = max if column.higher_is_better else min
    return choose(means) if means else None


def summary_table(results: Tree, width: int = 120) -> RenderableType:
    """Variants by metrics, means and 95 % intervals over seeds; claims below. Costs need 100 columns of `width`."""
    columns = [c for c in measured(results, COLUMNS if width >= 100 else SCORES) if c.key not in LEFT_OUT]
    seeds = len(results["seeds"])
    note = "one seed" if seeds == 1 else f"mean and 95 % interval over {seeds} seeds"
    table = Table(title=f"{results['title']} ({scale_of(results)}; {note})", title_justify="left")
    table.add_column("variant")
    for column in columns:
        table.add_column(column.short, justify="right")
    for variant in shown(results):
        cells = []
        for column in columns:
            mean = mean_of(results, variant, column)
            text = show(column, mean.mean, None if column in COSTS else mean.half) if mean else "–"
            cells.append(Text(text, style="bold" if mean and mean.mean == best(results, column) else ""))
        table.add_row(variant, *cells)
    guesses = [chance(results, column) for column in columns]
    if any(g is not None for g in guesses):
        table.add_section()
        table.add_row("guessing", *("" if g is None else show(c, g) for c, g in zip(columns, guesses)), style="dim")
    lines = [Text(f"{f.verdict}: {f.claim.says} ({f.reason})", style=STYLES[f.verdict]) for f in findings(results)]
    return Group(table, *lines)


def rates_table(rates: Tree) -> RenderableType:
    """The learning-rate check, arms by rates."""
    table = Table(title=rates_text(rates), title_justify="left")
    for head in rate_heads(rates):
        table.add_column(head, justify="left" if head == "variant" else "right")
    for row in rate_rows(rates):
        table.add_row(*row)
    return table
