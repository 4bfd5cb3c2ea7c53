"""`distill run`: one run from a recipe, in its own folder, resumable exactly."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console

from distill.config.load import Resolved, load_config
from distill.config.schema import Config
from distill.data.decoders import choose_decoder
from distill.data.loader import Failures, build_loader
from distill.data.sources import caption_texts, open_source
from distill.errors import UserError
from distill.training import checkpoint, state_io
from distill.training.assemble import Assembly, assemble
from distill.training.banner import banner
from distill.training.guard import Guard
from distill.training.keep_targets import keep_targets, plan_targets
from distill.training.live_eval import live_evaluation
from distill.training.loop import Hooks, Interrupted, TrainState, train
from distill.training.metrics import MetricLog
from distill.training.precision import choose_precision, slow_precision
from distill.training.progress import TrainingProgress
from distill.training.receipts import receipts
from distill.training.strategy import leave, make_fabric, processes_here, spread
from distill.training.teacher_heads import prepare_teacher

TOKENIZER_CAPTIONS = 20_000  # captions read to train the word tokenizer


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
    finished = _prepare_folder(folder, resume, cfg, dry_run)
    if finished is not None:
        return finished
    console = console or Console(stderr=True)
    settle_hardware(resolved)
    fabric = make_fabric(cfg)
    source = open_source(cfg.data)
    assembly = assemble(cfg, caption_texts(source, cfg.captions.cls1 + cfg.captions.cls2, TOKENIZER_CAPTIONS))
    record_settled(resolved)
    kept = plan_targets(cfg, assembly.teacher, source)
    counts = receipts(assembly.distiller, assembly.teacher, assembly.spares)
    if fabric.is_global_zero:
        console.print(banner(resolved, assembly, counts, source, folder, fabric, kept))
    if dry_run:
        return RunResult(folder, 0, False)
    if fabric.is_global_zero:
        _write_papers(folder, resolved, fabric, counts.as_dict())
    if cfg.train.stage_from is not None:
        state_io.start_stage(assembly, cfg.train.stage_from)
    state = training_state(cfg, fabric, assembly, Failures(cfg.data.max_error_rate, getattr(source, "failures", ())))
    if resume:
        state_io.restore(state, assembly, folder / "checkpoints")
    trunk = next(iter(assembly.distiller.learners().values())).model.image
    grid = trunk.grid(cfg.views.global_size, cfg.views.global_size)
    state.seconds += prepare_teacher(assembly.teacher, cfg, fabric, assembly.tokenizer, source, grid, console)
    if kept is not None:
        keep_targets(cfg, assembly.teacher, kept)
    if state.step == 0:
        torch.manual_seed(cfg.seed + 7919 * (fabric.global_rank + 1))  # dropout and drop path, apart on every rank
    loader = build_loader(
        source,
        cfg,
        assembly.tokenizer,
        grid=grid,
        start_step=state.step,
        rank=fabric.global_rank,
        world=fabric.world_size,
        state=state.data,
    )
    state.data = loader.state
    result = _train(state, assembly, loader, folder, console)
    leave(fabric)
    return result


def combine(overrides: Iterable[str] | dict[str, Any], settings: dict[str, Any]) -> list[str] | dict[str, Any]:
    """Overrides and keyword settings as one; raises UserError for strings and keywords together."""
    if isinstance(overrides, dict):
        return {**overrides, **settings}
    words = list(overrides)
    if words and settings:
        raise UserError(f"Give settings either as strings ({words[0]}, ...) or as keywords, not both.")
    return settings or words


def _prepare_folder(folder: Path, resume: bool, cfg: Config, dry_run: bool) -> RunResult | None:
    """Refuses to mix runs in one folder; returns the result when there is nothing left to do."""
    done = checkpoint.existing(folder / "checkpoints")
    if resume and not dry_run and done and checkpoint.step_of(done[-1]) == cfg.train.steps:
        return RunResult(folder, cfg.train.steps, True)  # on every rank: none must wait for another
    if dry_run or not is_first_process():
        return None
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise UserError(
            f"{folder} already holds a run. Continue it with --resume, or choose another folder with name=NAME."
        )
    if resume and not folder.exists():
        raise UserError(f"Nothing to resume: {folder} does not exist. Start the run without --resume.")
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror}. Choose another place with --runs DIR.") from error
    return None


def is_first_process() -> bool:
    """Whether this is the process that other ranks are started from, before any process group exists."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def settle_hardware(resolved: Resolved) -> None:
    """Works out what the recipe leaves open to the machine, and records it as automatic.

    That is accelerator, precision, threads and, for shards, the JPEG decoder. Raises UserError for what is not here.
    """
    train, data = resolved.config.train, resolved.config.data
    if data.source == "shards" and data.decoder == "auto":
        resolved.set_auto("data.decoder", choose_decoder("auto"))
    if train.accelerator == "auto":
        resolved.set_auto("train.accelerator", "cuda" if torch.cuda.is_available() else "cpu")
    here = processes_here(train)
    if train.accelerator == "cuda" and torch.cuda.device_count() < here:
        raise UserError(
            f"train.devices={train.devices} with train.accelerator=cuda, but {torch.cuda.device_count()} CUDA "
            f"device(s) are here. Lower train.devices, set train.accelerator=cpu, or start the processes on several "
            f"machines with torchrun or srun (docs/launch.md)."
        )
    if train.strategy == "auto":
        resolved.set_auto("train.strategy", "ddp")
    if train.precision == "fp16" and train.accelerator == "cpu":
        raise UserError("train.precision=fp16 needs a CUDA device. On a CPU use fp32 or auto.")
    if slow := slow_precision(train):
        resolved.warnings.append(slow)
    if train.precision == "auto":
        resolved.set_auto("train.precision", choose_precision(train))
    if train.threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        resolved.set_auto("train.threads", max(1, cores // here))


def record_settled(resolved: Resolved) -> None:
    """Records what `auto` turned out to be for the teacher that was opened, for the papers of the run."""
    objective, heads = resolved.config.objective, resolved.config.teacher.heads
    settled = {
        "objective.cls.target": objective.cls.target,
        "objective.patch.target": objective.patch.target,
        "teacher.heads.kind": heads.kind,
    }
    for key, value in settled.items():
        if resolved.values[key].value != value:
            resolved.set_auto(key, value)


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
        lost = state_io.losses(state)
    except Interrupted:
        lost = state_io.losses(state)
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
            _report_losses(*lost, cfg.text.context, console, finished)
    return RunResult(folder, state.step, True, _last_row(folder))


def _report_losses(failures: Failures, cut: int, context: int, console: Console, finished: bool) -> None:
    report = failures.report()
    if report:
        console.print(report)
    if cut and finished:
        console.print(f"{cut} captions were longer than text.context={context} tokens and were cut.")


def _last_row(folder: Path) -> dict[str, float]:
    from distill.training.metrics import read_metrics

    path = folder / "metrics.csv"
    rows = read_metrics(path) if path.exists() else []
    return rows[-1] if rows else {}


def _write_papers(folder: Path, resolved: Resolved, fabric: Fabric, counts: dict[str, Any]) -> None:
    """config.yaml (as asked), resolved.yaml (every value and its source), env.json, receipts.json."""
    try:
        (folder / "config.yaml").write_text(resolved.asked)
        (folder / "resolved.yaml").write_text(resolved.to_yaml())
        (folder / "env.json").write_text(json.dumps(environment(fabric), indent=2) + "\n")
        (folder / "receipts.json").write_text(json.dumps(counts, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror}. Free some space or choose --runs DIR.") from error


def environment(fabric: Fabric | None = None) -> dict[str, Any]:
    """Versions, hardware and time, for results that can be traced."""
    packages = ("everypatch", "torch", "torchvision", "timm", "lightning", "numpy", "pillow")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world": 1 if fabric is None else fabric.world_size,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
