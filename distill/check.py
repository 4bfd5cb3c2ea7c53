"""`distill check`: a recipe and its overrides, validated by the code that `run` uses, and what the run will need."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from distill.config.fields import MISSING, leaf_of
from distill.config.load import ConfigError, load_config
from distill.config.recipes import find
from distill.config.resolved import Resolved
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.preflight.report import Report
    from distill.study.plan import Plan


def register(subparsers: Any) -> None:
    text = "Validate a recipe with its settings and show models, tokens, data and cost. Nothing is trained."
    parser = subparsers.add_parser("check", help=text, description=text)
    parser.add_argument("recipe", metavar="RECIPE", help="a name from distill ls, or a recipe file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that win over the recipe's")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(main=lambda args: check(args.recipe, args.overrides, as_json=args.json))


def check(recipe: str, overrides: list[str], as_json: bool = False) -> int:
    """Print the report; returns 0 when the recipe can run (but for values it leaves to the user), else 1.

    Raises `ConfigError` when the recipe itself is not valid (with `as_json`, its problems are printed instead).
    """
    if find(recipe).is_study:
        return _check_study(recipe, overrides, as_json)
    try:
        resolved = load_config(recipe, overrides)
    except ConfigError as error:
        if not as_json:
            raise
        print(json.dumps({"recipe": recipe, "problems": [str(problem) for problem in error.problems]}, indent=2))
        return 2
    from distill.preflight.report import preflight

    report = preflight(resolved)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2, default=str))
    else:
        _print(report, resolved, overrides)
    return 1 if report.problems else 0


def _check_study(recipe: str, overrides: list[str], as_json: bool) -> int:
    """A study is valid when all of its cells are and they differ only in what it declares (else `UserError`).

    Data that is not there, or cannot be evaluated, is a problem.
    """
    from distill.study.cli import settings
    from distill.study.run import plan_study

    plan = plan_study(recipe, settings(overrides))
    supply = _study_supply(plan)
    problems = _study_data(plan)
    teachers = {cell.variant: plan.cells[cell.teacher].variant for cell in plan.cells.values() if cell.teacher}
    if as_json:
        cells = list(plan.cells)
        found = {"recipe": recipe, "problems": problems, "cells": cells, "teachers": teachers, "supply": supply}
        print(json.dumps(found, indent=2))
        return 1 if problems else 0
    print(f"{recipe}: {plan.recipe.title}\n")
    for variant in plan.recipe.variants.values():
        learns_from = f" (teacher: {teachers[variant.name]})" if variant.name in teachers else ""
        print(f"  {variant.name}: {variant.title}{learns_from}")
    seeds = f"{len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}"
    print(f"\n{len(plan.cells)} cells: {len(plan.recipe.variants)} variants x {seeds}, all valid.")
    for problem in problems:
        print(f"  {problem}")
    if problems:
        print("A cell would be refused.")
        return 1
    if supply:
        print("\nYou must supply")
        for key, text in supply.items():
            print(f"  {key}=...  {text}")
        print()
    words = " ".join([shlex.join([recipe, *overrides]), *(f"{key}=..." for key in supply)])
    print(f"What one of them takes: distill check {plan.recipe.base}. To run them: distill study {words}")
    return 0


def _study_supply(plan: Plan) -> dict[str, str]:
    """The keys that the study leaves to the user, and what they mean."""
    cell = next(iter(plan.cells.values()))
    missing = load_config(cell.base, cell.overrides).missing
    if plan.eval["dataset"] == MISSING:
        missing = [*missing, "eval.dataset"]
    return {key: leaf_of(key).help for key in missing}


def _study_data(plan: Plan) -> list[str]:
    """What is wrong with the data that all cells train on and are evaluated on."""
    from distill.evals.run import check_evaluation
    from distill.preflight.data import look_at_data

    cell = next(iter(plan.cells.values()))
    problems = list(look_at_data(load_config(cell.base, cell.overrides).config).problems)
    if plan.eval["dataset"] == MISSING:
        return problems
    try:
        check_evaluation(plan.eval["tasks"], plan.eval["dataset"])
    except UserError as error:
        problems.append(f"eval.dataset: {error}")
    return problems


def _print(report: Report, resolved: Resolved, overrides: list[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{report.recipe}[/] -> runs/{report.name}", markup=True)
    config = resolved.config
    for title, lines in (
        ("Differs from the recipe", report.differences),
        ("Models", _model_lines(report)),
        ("Receipts", _receipt_lines(report)),
        ("Objective", _objective_lines(resolved)),
        ("Tokens", report.grids),
        ("Data", report.data.lines),
        ("Kept targets", [report.kept] if report.kept else []),
        (f"Cost of a step, {config.train.batch:,} images (estimate)", _cost_lines(report, resolved)),
        ("Notes", (report.counts.notes if report.counts else []) + report.warnings),
        ("You must supply", [f"{key}=...  {text}" for key, text in report.supply.items()]),
        ("Problems", report.problems),
    ):
        if lines:
            console.print(f"\n[bold]{title}[/]")
            for line in lines:
                console.print("  " + line, markup=False)
    console.print(f"\n{_verdict(report, overrides)}", markup=False)


def _verdict(report: Report, overrides: list[str]) -> str:
    words = [shlex.quote(word) for word in overrides]
    if report.problems:
        return f"{len(report.problems)} problem{'s' if len(report.problems) > 1 else ''}; a run would be refused."
    if report.supply:
        words += [f"{key}=..." for key in report.supply]
    return f"Valid. To run it: distill run {shlex.quote(report.recipe)} {' '.join(words)}".rstrip()


def _objective_lines(resolved: Resolved) -> list[str]:
    from distill.training.banner import objective_line

    config = resolved.config
    return [objective_line(config), f"teacher {config.teacher.mode}"]


def _model_lines(report: Report) -> list[str]:
    if report.counts is None:
        return []
    rows: list[tuple[str, ...]] = [("", "", "image", "text", "heads", "trained")]
    for model in report.counts.models:
        numbers = (model.image, model.text, model.heads, model.trained)
        rows.append((model.name, f"{model.arch.name}, {model.role}", *map(_millions, numbers)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(_pad(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows
    ]
    if report.counts.teacher:
        lines += [f"teacher: {report.counts.teacher}", f"targets: {report.counts.targets}"]
    return lines


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def _receipt_lines(report: Report) -> list[str]:
    counts = report.counts
    if counts is None:
        return []
    lines = [f"{counts.trained:,} trained, {counts.averaged:,} averaged, {counts.frozen:,} frozen parameters"]
    if report.saving is not None:
        lines.append(
            f"averaging the heads alone saves {report.saving:.1%} of image + heads + averages over averaging all"
        )
        lines += [f"  with {heads}: {saving:.1%}" for heads, _, saving in report.savings]
        lines.append("  (the paper says 42 % on ViT-B and not which head)")
    return lines


def _cost_lines(report: Report, resolved: Resolved) -> list[str]:
    cost, train = report.cost, resolved.config.train
    if cost is None or report.device_days is None:
        return []
    passes = [
        f"{p.model} {p.what} {p.sequences} x {p.tokens}{'' if p.trained else ' (no gradient)'}" for p in cost.passes
    ]
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in cost.memory.items() if size >= 2**19)
    each = train.batch // (train.accumulate * train.devices)
    device = "CPU" if train.accelerator == "cpu" else "GPU"
    where = f"the {device}" if train.devices == 1 else f"each of {train.devices} {device}s"
    here = "" if report.cpu_memory is None else f"; on this CPU {_bytes(report.cpu_memory)}"
    return [
        f"passes per image (sequences x tokens): {'; '.join(passes)}",
        f"{cost.image_tokens:,} image tokens, {cost.text_tokens:,} text tokens, {cost.flops:.3g} operations",
        f"{train.steps:,} steps: {cost.flops * train.steps:.3g} operations, {_time(report.device_days)} at 400 TFLOP/s",
        f"memory on {where}, {each} images at a time, {report.precision}: {_bytes(cost.total_memory)} ({parts}){here}",
        f"prototype logits are made in chunks; whole, they would add {_bytes(cost.logits_saved)}",
    ]


def _millions(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number else "-"


def _bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _time(days: float) -> str:
    return f"{days:,.0f} GPU days" if days >= 2 else f"{days * 24:,.1f} GPU hours" if days > 0.05 else "under an hour"
