"""The page of results, made from their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.bench.registry import BENCHMARKS, module_of

TOP = """# Measured against plain references

Made by `distill bench --json docs/results/bench.json --report docs/results/bench.md`. Ours and the reference are
measured in turn in one run; "times better" is how many times faster or smaller ours is, so below 1 the reference wins.
On a machine that others use too, CPU time tells more than wall time.
"""


def number(value: float | None) -> str:
    """Three significant digits, without exponent; a dash for None."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def write_report(results: Mapping[str, Any], page: Path) -> None:
    """Writes `page`, Markdown, and the pictures beside it, from the results by name."""
    page.write_text("\n".join([TOP, *(section(name, results[name], page) for name in BENCHMARKS if name in results)]))


def section(name: str, result: Mapping[str, Any], page: Path) -> str:
    """One benchmark: what it compares, its picture if it draws one (beside the page), its rows, and their machine."""
    lines = [f"## {name}: {BENCHMARKS[name][1]}", "", (module_of(name).__doc__ or "").strip(), ""]
    if draw := getattr(module_of(name), "draw", None):
        picture = page.with_name(f"{page.stem}_{name}.png")
        draw(result["rows"], picture)
        lines += [f"![{name}]({picture.name})", ""]
    lines += ["| what | ours | reference | times better | unit | note |", "|---|--:|--:|--:|---|---|"]
    for row in result["rows"]:
        figures = (number(row[key]) for key in ("ours", "reference", "ratio"))
        lines.append("| " + " | ".join([row["what"], *figures, row["unit"], row["note"]]) + " |")
    return "\n".join([*lines, "", origin(result), ""])


def origin(result: Mapping[str, Any]) -> str:
    """The machine, the versions and the time, in one sentence."""
    env = result["environment"]
    versions = ", ".join(f"{package} {env['packages'][package]}" for package in ("torch", "timm"))
    quick = "Quick sizes, whose figures mean little. " if result["quick"] else ""
    return (
        f"{quick}Measured {env['time'][:10]} on {env['device']} ({env['cores']} cores, {env['cpu_capability']}), "
        f"Python {env['python']}, {versions}, in {result['seconds']:.0f} s."
    )
