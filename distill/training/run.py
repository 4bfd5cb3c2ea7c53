"""`distill run`: one run from a recipe, in its own folder, resumable exactly."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from rich.console import Console

from distill.config.load import load_config
from distill.config.schema import Config
from distill.data.loader import Failures
from distill.errors import UserError
from distill.training import checkpoint, state_io
from distill.training.assemble import Assembly
from distill.training.banner import banner
from distill.training.build import Built, build_run
from distill.training.guard import Guard
from distill.training.keep_targets import keep_targets
from distill.training.live_eval import check_live_evaluation, check_live_models, is_headline, live_evaluation
from distill.training.loop import Hooks, TrainState, train
from distill.training.metrics import MetricLog, check_logging
from distill.training.papers import PAPERS, kept_sources, taken_from, write_papers
from distill.training.progress import TrainingProgress
from distill.training.receipts import receipts
from distill.training.stage import start_stage
from distill.training.stopping import Interrupted
from distill.training.strategy import leave, spread
from distill.training.teacher_heads import prepare_teacher


@dataclass
class RunResult:
    """Where a run stands. `finished` is False when it was stopped and can be resumed."""

    folder: Path
    step: int
    finished: bool
    metrics: dict[str, float] = field(default_factory=dict)  # the last row


def run(
    recipe: str | Path,
    overrides: Iterable[str] | dict[str, Any] = (),
    *,
    resume: bool = False,
    dry_run: bool = False,
    runs: str | Path = "runs",
    console: Console | None = None,
    **settings: Any,
) -> RunResult:
    """Runs a recipe to its end.

    Args:
        recipe: a name from `distill ls` or a path.
        overrides: `key=value` strings or a dict of dotted keys.
        settings: the same as sections: `run("pretrain/scenes_tiny", train={"steps": 100}, **{"mask.ratio": 0.5})`.
        resume: continue from the newest checkpoint of this run's folder.
        dry_run: build everything, take no step, write nothing.
        runs: folder that holds the runs.
        console: where the banner goes (standard error by default).

    Raises UserError for anything a user can mend, Collapse when the guard stops the run, KeyboardInterrupt after Ctrl-C
    (state saved).
    """
    resolved = load_config(recipe, combine(overrides, settings))
    cfg = resolved.config
    resolved.require_complete()
    folder = Path(runs) / (cfg.name or Path(str(recipe)).stem)
    console = console or Console(stderr=True)
    check_logging(cfg.log)
    finished = _prepare_folder(folder, resume, cfg, dry_run, console)
    if finished is not None:
        return finished
    evaluated = check_live_evaluation(cfg.eval) if is_first_process() else {}  # now, not after all the training
    kept = checkpoint.existing(folder / "checkpoints") if resume else []
    resumed = kept[-1] if kept else None
    built = build_run(resolved, resumed)
    if cfg.eval.tasks:
        check_live_models(cfg, built.fabric, built.assembly, evaluated)
    counts = receipts(built.assembly.distiller, built.assembly.teacher, built.assembly.spares)
    if built.fabric.is_global_zero:
        console.print(banner(resolved, built.assembly, counts, built.source, folder, built.fabric, built.kept))
    if dry_run:
        return RunResult(folder, 0, False)
    state = _first_state(built, resumed, console)
    loader = built.loader(state.step, state.data)
    state.data = loader.state
    if built.fabric.is_global_zero:  # only now: what may not be resumed keeps the papers that it had
        sources = kept_sources(folder) if resumed else None  # what it began with may not be there any more
        if sources is None:
            sources = taken_from(built.cfg, built.assembly.opened)
        write_papers(folder, resolved, built.fabric, counts.as_dict(), sources)
    _prepare(built, state, console)
    result = _train(state, built.assembly, loader, folder, console)
    leave(built.fabric)
    return result


def combine(overrides: Iterable[str] | dict[str, Any], settings: dict[str, Any]) -> list[str] | dict[str, Any]:
    """Overrides and keyword settings as one; raises UserError for strings with keywords, and for a key given twice."""
    if isinstance(overrides, dict):
        if twice := sorted(overrides.keys() & settings.keys()):
            raise UserError(f"{twice[0]} is given twice, in the dictionary and as a keyword. Give it once.")
        return {**overrides, **settings}
    words = list(overrides)
    if words and settings:
        raise UserError(f"Give settings either as strings ({words[0]}, ...) or as keywords, not both.")
    return settings or words


def _prepare_folder(folder: Path, resume: bool, cfg: Config, dry_run: bool, console: Console) -> RunResult | None:
    """Refuses to mix runs in one folder; returns the result when there is nothing left to do."""
    done = checkpoint.existing(folder / "checkpoints")
    first = is_first_process()
    if resume and not dry_run and done and checkpoint.step_of(done[-1]) == cfg.train.steps:
        if first:
            console.print(f"{folder} is finished: {cfg.train.steps} steps.", markup=False, highlight=False)
        return RunResult(folder, cfg.train.steps, True)  # on every rank: none must wait for another
    if dry_run or not first:
        return None
    if _holds_something(folder) and not resume:
        raise UserError(
            f"{folder} already holds a run. Continue it with --resume, or choose another folder with name=NAME."
        )
    if resume and not done:
        console.print(f"No checkpoint in {folder} yet: begins at step 0.", markup=False, highlight=False)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror}. Choose another place with --runs DIR.") from error
    return None


def _holds_something(folder: Path) -> bool:
    """Whether a folder has more in it than a start that failed leaves behind."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return bool(names - {"checkpoints", *PAPERS} or checkpoint.existing(folder / "checkpoints"))


def is_first_process() -> bool:
    """Whether this is the process that other ranks are started from, before any process group exists."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def _first_state(built: Built, resumed: Path | None, console: Console) -> TrainState:
    """Where training begins, or goes on."""
    cfg, fabric, assembly = built.cfg, built.fabric, built.assembly
    if cfg.train.stage_from is not None and resumed is None:
        start_stage(assembly, cfg)
    state = training_state(cfg, fabric, assembly, built.failures())
    if resumed is not None:
        changed = state_io.restore(state, assembly, resumed)
        if state.step > cfg.train.steps:
            raise UserError(
                f"{resumed} has {state.step} steps already, but train.steps is {cfg.train.steps}. "
                "Set it to that or more, or start a new run with name=OTHER."
            )
        if changed and fabric.is_global_zero:
            console.print(f"Goes on with other settings than before: {changed}.", markup=False, highlight=False)
    return state


def _prepare(built: Built, state: TrainState, console: Console) -> None:
    """The last steps before the first one: what a frozen teacher still lacks, and this rank's random state."""
    cfg, fabric, assembly = built.cfg, built.fabric, built.assembly
    state.seconds += prepare_teacher(
        assembly.teacher, cfg, fabric, assembly.tokenizer, built.source, built.grid, console
    )
    if built.kept is not None:
        keep_targets(cfg, assembly.teacher, built.kept)
    if state.step == 0:
        state_io.seed_rank(cfg.seed, fabric.global_rank, 0)


def training_state(cfg: Config, fabric: Fabric, assembly: Assembly, failures: Failures) -> TrainState:
    module, optimizers = spread(cfg, fabric, assembly)
    return TrainState(
        cfg=cfg,
        fabric=fabric,
        module=module,
        distiller=assembly.distiller,
        teacher=assembly.teacher,
        optimizers=optimizers,
        guard=Guard(cfg.guard),
        failures=failures,
        spares=assembly.spares,
    )


def _train(state: TrainState, assembly: Assembly, loader: Any, folder: Path, console: Console) -> RunResult:
    cfg, fabric = state.cfg, state.fabric
    log = progress = None
    if fabric.is_global_zero:
        log = MetricLog(folder, cfg.log, state.step, folder.name, asdict(cfg))
        progress = TrainingProgress(folder, folder.name, state.step, cfg.train.steps, console)
    hooks = Hooks(
        log=log,
        progress=progress,
        save=lambda s: state_io.save(s, assembly, folder / "checkpoints"),
        evaluate=lambda s: live_evaluation(s, folder),
    )
    state.module.train()
    finished = False
    lost = state.failures, state.cut  # this rank's: after an error others may not answer
    try:
        train(state, iter(loader), hooks)
        finished = True
        lost = state_io.lost_data(state)
    except Interrupted:
        lost = state_io.lost_data(state)
        if fabric.is_global_zero:
            console.print(
                f"Stopped at step {state.step} of {cfg.train.steps}, saved. "
                f"Continue with the same command and --resume."
            )
        raise KeyboardInterrupt from None
    finally:
        if progress is not None:
            progress.close()
        if log is not None:
            log.close()
        if fabric.is_global_zero:
            _report_lost(*lost, cfg.text.context, console, finished)
    row = _last_row(folder)
    if fabric.is_global_zero:
        console.print("\n".join(_ending(folder, state.step, row)), markup=False, highlight=False, soft_wrap=True)
    return RunResult(folder, state.step, True, row)


def _ending(folder: Path, step: int, row: dict[str, float]) -> list[str]:
    """What a finished run came to, and where to go from it."""
    loss = f", loss {row['loss']:.3f}" if "loss" in row else ""
    scores = [f"  {name.removeprefix('eval/')} {value:.3f}" for name, value in row.items() if is_headline(name)]
    run = shlex.quote(f"run:{folder}")
    follow = f"Next: distill eval {run} TASK=DATASET, distill export {run} --to timm, or teacher.source={run}"
    return [f"Finished: {folder}, {step} steps{loss}.", *scores, follow]


def _report_lost(failures: Failures, cut: int, context: int, console: Console, finished: bool) -> None:
    report = failures.report()
    if report:
        console.print(report, markup=False, highlight=False, soft_wrap=True)
    if cut and finished:
        console.print(f"{cut} captions were longer than text.context={context} tokens and were cut.")


def _last_row(folder: Path) -> dict[str, float]:
    from distill.training.metrics import read_metrics

    path = folder / "metrics.csv"
    rows = read_metrics(path) if path.exists() else []
    return rows[-1] if rows else {}
