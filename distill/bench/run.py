"""Runs benchmarks, shows them, and keeps them as JSON with the hardware and versions they come from."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from distill.bench.registry import BENCHMARKS, find_benchmarks, measure_of
from distill.bench.report import number, write_report
from distill.bench.rows import Row
from distill.errors import UserError
from distill.training.papers import environment


def run_benchmarks(
    names: Sequence[str] = (), quick: bool = False, target: Path | None = None, page: Path | None = None
) -> dict[str, Any]:
    """Measures the named benchmarks (none: all), prints each, and returns the results by name.

    `target`: a JSON file to add them to, after each one, replacing older results of the same name. `page`: a Markdown
    page to write from that file. Raises UserError for an unknown name, or when `target` holds something else.
    """
    wanted = find_benchmarks(names)
    kept = _read(target)
    console = Console(width=120)
    for name in wanted:
        began = time.monotonic()
        rows = measure_of(name)(quick)
        kept[name] = {
            "quick": quick,
            "seconds": round(time.monotonic() - began, 1),
            "environment": environment()
            | {"command": f"distill bench {name}", "cpu_capability": torch.backends.cpu.get_cpu_capability()},
            "rows": [asdict(row) for row in rows],
        }
        console.print(table(name, rows))
        if target is not None:
            target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        if page is not None:
            write_report(kept, page)
    return {name: kept[name] for name in wanted}


def table(name: str, rows: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    shown = Table(title=f"{name}: {BENCHMARKS[name][1]}", title_justify="left")
    for column in ("what", "ours", "reference", "times better", "unit", "note"):
        shown.add_column(column, justify="right" if column in ("ours", "reference", "times better") else "left")
    for row in rows:
        shown.add_row(row.what, *map(number, (row.ours, row.reference, row.ratio)), row.unit, row.note)
    return shown


def _read(target: Path | None) -> dict[str, Any]:
    if target is None or not target.exists():
        return {}
    try:
        content = json.loads(target.read_text(encoding="utf-8"))
        known = isinstance(content, dict) and all("rows" in entry for entry in content.values())
    except (ValueError, TypeError):
        known = False
    if not known:
        raise UserError(f"{target} holds something else than benchmark results. Choose another file for --json.")
    return content
