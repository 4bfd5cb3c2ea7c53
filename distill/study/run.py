"""`distill study`: plan, run what is missing, collect, report."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.config.load import load_config
from distill.config.schema import Config
from distill.cores import cores, threads_each
from distill.errors import UserError
from distill.study.display import Display, clock
from distill.study.keep import Keeper, small_results
from distill.study.overview import write_overview
from distill.study.plan import Plan, cell_name, make_plan, select
from distill.study.rates import rate_plan, save_rates, trials
from distill.study.recipe import checked_seeds, read_study
from distill.study.report import write_report
from distill.study.results import REPORT, RESULTS, Tree, collect, holds_studies, load_results, load_studies, save
from distill.study.runner import Command, Outcome, Runner, cell_command
from distill.study.store import is_done, read_json, read_result
from distill.study.table import rates_table, summary_table


@dataclass
class StudyResult:
    """A study's folder, its results (as in results.json), and what became of the cells."""

    folder: Path
    results: Tree
    outcome: Outcome
    restart: str  # the command that goes on where this one stopped
    rates: Tree | None = None  # of a learning-rate check, as in lr.json

    @property
    def complete(self) -> bool:
        """Whether every cell that was asked for is done."""
        return not (self.outcome.failed or self.outcome.blocked or self.outcome.interrupted)


def study(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    parallel: int | None = None,
    only: Sequence[str] = (),
    again: bool = False,
    name: str | None = None,
    runs: str | Path = "runs",
    keep: str | Path | None = None,
    lr_check: float | None = None,
    console: Console | None = None,
    command: Command = cell_command,
    **more: Any,
) -> StudyResult:
    """Run the missing cells of a study, then write results.json, claims.json and report.html.

    Args:
        recipe: a name from `distill ls` (`study/demo`) or a file.
        overrides: dotted keys for every variant; keys under `eval.` change the study's evaluation; `scale` names one
            of the recipe's scales. Further keyword arguments are sections: `train={"steps": 100}`.
        seeds: how many, or which (None: the recipe's).
        parallel: cells at once (None: one a CPU core, or one a GPU).
        only: variants to run, with the teachers they need (empty: all).
        again: run those of `only` anew (all variants if `only` is empty); the old cells are kept aside.
        name: folder under `runs` (None: the study's own name).
        keep: folder that gets a small copy of every finished cell, to be committed; cells found there are not run.
        lr_check: instead of the study run its learning-rate check, for this part of the steps (distill/study/rates.py).

    Raises UserError for a recipe that cannot be run, before anything is started.
    """
    console = console or Console(stderr=True)
    changes = _flat({**(overrides or {}), **more})
    plan = checked = plan_study(recipe, changes, seeds, runs, name)
    if plan.eval["dataset"] == "???":
        raise UserError(f"{plan.recipe.path} leaves eval.dataset to you; give eval.dataset=DATASET:PATH with masks.")
    select(plan, only)  # refuses unknown ones
    wanted, check = only, None
    if lr_check is not None:
        plan = rate_plan(checked, _for_variants(changes), _resolve, lr_check)
        only = trials(only or list(checked.recipe.variants))
        check = partial(save_rates, checked, lr_check)
    names = select(plan, only or list(plan.recipe.variants))
    anew = [c.name for c in plan.cells.values() if again and (not only or c.variant in only)]
    _check_writable(plan.root, "Choose another place with --runs DIR.")
    if keep is not None:
        _check_writable(Path(keep), "Choose another place with --keep DIR.")
    slots, threads, gpus = divide_machine(parallel, plan)
    keeper = None if keep is None else _keeper(Path(keep), plan, recipe, changes, name, check)
    with alone(plan.root), Display(slots, console) as display:
        extra: dict[str, Any] = {} if keeper is None else {"kept": keeper.folder, "on_done": keeper}
        outcome = Runner(plan, display, slots, threads, gpus, command, **extra).run(names, anew)
    line = _command_line(recipe, changes, seeds, name, runs, keep, lr_check)
    results = collect(plan, outcome.failed, line, changes)
    save(results, plan.root)
    rates = check(checked.root.parent, results) if check else None
    if results["rows"]:
        write_report(results, plan.root)
    restart = f"{line} --only {','.join(wanted)}" if wanted else line
    return StudyResult(plan.root, results, outcome, restart, rates)


def plan_study(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
) -> Plan:
    """Read and check a study without running anything; raises UserError for what `study` would refuse."""
    chosen = None if seeds is None else checked_seeds(list(seeds) if isinstance(seeds, Sequence) else seeds)
    changes = _flat(overrides or {})
    scale = changes.pop("scale", None)
    study = read_study(recipe, None if scale is None else str(scale))
    return make_plan(study, _resolve, changes, chosen, Path(runs), name)


def _for_variants(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of every variant's run among those of a study."""
    return {key: value for key, value in changes.items() if key != "scale" and not key.startswith("eval.")}


def _resolve(base: str, changes: dict[str, Any]) -> Config:
    return load_config(base, changes).config


def _keeper(
    folder: Path,
    plan: Plan,
    recipe: str | Path,
    overrides: Mapping[str, Any],
    name: str | None,
    check: Callable[[Path, Tree], Tree] | None,
) -> Keeper:
    """Keeps this study's cells; its kept results go on to hold the seeds that they had."""
    had = (read_json(folder / plan.root.name / RESULTS) or {}).get("seeds", [])
    seeds = sorted({*plan.seeds, *had})
    whole = plan
    if not plan.recipe.checks and seeds != list(plan.seeds):
        whole = plan_study(recipe, overrides, seeds, plan.root.parent, plan.root.name)
    count = len(seeds) if seeds == list(range(len(seeds))) and set(seeds) != set(plan.recipe.seeds) else None
    command = _command_line(recipe, overrides, count, name, "runs", None, None)  # for a reader
    return Keeper(folder, plan, whole, command, overrides, check)


def rebuild(folder: str | Path) -> Path:
    """Write report.html (and claims.json) anew from a folder with results.json; returns the report's path.

    A folder that holds several studies' folders gets one report of them all, and its README.md.
    """
    place = Path(folder)
    several = holds_studies(place)
    for one in load_studies(place) if several else [""]:
        results = refreshed(place / one)
        for target in (place, place / one):
            _check_writable(target, "Report from a copy of it.")
        save(results, place / one)
    return write_overview(place) if several else write_report(load_results(place), place)


def refreshed(folder: Path) -> Tree:
    """A study's results with the words, claims and comparisons that its recipe has today, and with all cells there are.

    As stored where the recipe is gone or no longer describes the stored rows (their settings or their evaluation), and
    where their cells are not there: nothing is lost.
    """
    results = load_results(folder)
    changes = {**results.get("overrides", {}), **({"scale": results["scale"]} if results.get("scale") else {})}
    if results.get("checks"):
        return results
    try:
        plan = plan_study(results["recipe"], changes, results["seeds"], folder.parent, folder.name)
    except UserError:
        return results
    if not all(_describes(plan, row) for row in results["rows"]):
        return results
    new = collect(plan, results["failed"], results["command"], changes)
    return {**small_results(new), "folder": results["folder"]}


def _describes(plan: Plan, row: Tree) -> bool:
    """Whether a stored row is of one of the plan's cells, and that cell is there, evaluated as the plan asks."""
    cell = plan.cells.get(cell_name(row["variant"], row["seed"]))
    if cell is None or cell.address != row["address"]:
        return False
    result = read_result(plan.folder(cell))
    return result is not None and is_done(result, cell, plan.eval)


def _check_writable(folder: Path, fix: str) -> None:
    """Makes the folder where there is none; a UserError where nothing can be written to it."""
    reason = "it is read-only"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = str(error.strerror)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"Cannot write to {folder}: {reason}. {fix}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a study's folder for this process; a second one is refused. The lock ends with the process."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"Another process is running the study in {folder}; wait for it, or give --name.") from None
        yield


def divide_machine(parallel: int | None, plan: Plan) -> tuple[int, int, list[str]]:
    """(cells at once, CPU threads a cell, GPUs to hand out).

    Tiny models use several cores badly, so a CPU runs a cell a core with one thread each; with GPUs it is a cell a GPU.
    A cell takes OMP_NUM_THREADS at most, so that two studies can share a machine.
    """
    if parallel is not None and parallel < 1:
        raise UserError(f"--parallel {parallel}: at least 1 cell must run at a time.")
    accelerator = next(iter(plan.cells.values())).content["train.accelerator"]
    gpus = [] if accelerator == "cpu" else _gpus()
    slots = parallel or max(1, len(gpus) or min(cores(), len(plan.cells)))
    return slots, min(max(1, cores() // slots), threads_each(1)), gpus


def _gpus() -> list[str]:
    """Names of the GPUs that cells may use, as CUDA_VISIBLE_DEVICES takes them."""
    if not Path("/proc/driver/nvidia").exists() and shutil.which("nvidia-smi") is None:
        return []  # without importing torch, which takes seconds
    import torch

    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in overrides.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _command_line(
    recipe: str | Path,
    overrides: Mapping[str, Any],
    seeds: Any,
    name: str | None,
    runs: Any,
    keep: Any,
    lr_check: float | None,
) -> str:
    words = ["distill", "study", str(recipe), *(f"{k}={_written(v)}" for k, v in overrides.items())]
    words += ["--seeds", str(seeds)] if isinstance(seeds, int) else []
    words += ["--name", name] if name else []
    words += ["--runs", str(runs)] if str(runs) != "runs" else []
    words += ["--keep", str(keep)] if keep is not None else []
    words += ["--lr-check", "--fraction", f"{lr_check:g}"] if lr_check is not None else []
    return shlex.join(words)


def _written(value: Any) -> str:
    """A value as `key=value` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def tell(result: StudyResult, console: Console, seconds: float) -> None:
    """Print the table, what failed and how to go on, and where everything is."""
    outcome = result.outcome
    if result.rates is not None:
        console.print(rates_table(result.rates))
    elif result.results["rows"]:
        console.print(summary_table(result.results, console.width))
    for cell, tail in outcome.failed.items():
        console.print(f"\n{cell} failed. The end of {result.folder / 'cells' / cell / 'cell.log'}:", style="bold red")
        console.print(tail, markup=False, highlight=False)
    for cell in outcome.blocked:
        console.print(f"{cell} was not run: its teacher failed.", highlight=False)
    if outcome.interrupted:
        console.print(f"Stopped after {clock(seconds)}. Continue with: {result.restart}", markup=False, highlight=False)
    elif not result.complete:
        console.print(f"Put it right, then continue with: {result.restart}", markup=False, highlight=False)
    if result.results["rows"]:
        console.print(f"{result.folder / RESULTS}\n{result.folder / REPORT}", markup=False, highlight=False)
