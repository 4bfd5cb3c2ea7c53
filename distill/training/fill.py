"""Fills a frozen teacher's cache without training: every view passes the teacher once, in the batches of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from distill.config.load import load_config
from distill.config.schema import Config
from distill.errors import UserError
from distill.training.build import build_run
from distill.training.keep_targets import keep_targets
from distill.training.teacher_heads import prepare_teacher
from teachers.cache_plan import CachePlan
from teachers.frozen import FrozenTeacher


@dataclass
class Filled:
    """What became of a cache: its plan, and how many rows were not there before."""

    plan: CachePlan
    computed: int


def fill(recipe: str | Path, overrides: Iterable[str] | dict[str, Any] = ()) -> Filled:
    """Computes and keeps all targets of the recipe's views that the run will meet; goes on where it was stopped.

    Raises `UserError` when the recipe has no `teacher.cache.path`, and as `distill run` does.
    """
    resolved = load_config(recipe, overrides if isinstance(overrides, dict) else list(overrides))
    cfg = resolved.config
    resolved.require_complete()
    if cfg.teacher.cache.path is None:
        raise UserError("teacher.cache.path is null, so nothing is kept. Set it to a folder: teacher.cache.path=DIR.")
    built = build_run(resolved)
    fabric, teacher, plan = built.fabric, built.assembly.teacher, built.kept
    assert isinstance(teacher, FrozenTeacher)
    assert plan is not None
    teacher.to(fabric.device)
    prepare_teacher(teacher, cfg, fabric, built.assembly.tokenizer, built.source, built.grid, Console(stderr=True))
    cache = keep_targets(cfg, teacher, plan)
    before = cache.store.present()
    _limit_steps(cfg, plan)
    loader = built.loader(_first_step(cfg, before, plan))
    failures = built.failures()
    for batch in track(loader, "targets", total=len(loader), disable=not fabric.is_global_zero, transient=True):
        failures.add(batch)
        on_device = batch.to(fabric.device, non_blocking=True)
        with fabric.autocast():
            teacher.embedded(on_device.images(), batch.view)
    fabric.barrier()
    return Filled(plan, int(cache.store.present().sum() - before.sum()))


def _limit_steps(cfg: Config, plan: CachePlan) -> None:
    """As many steps as it takes to meet every row once."""
    cfg.train.steps = -(-plan.used // cfg.train.batch)


def _first_step(cfg: Config, present: np.ndarray, plan: CachePlan) -> int:
    """The first step with a row that is not there; `cfg.train.steps` when all are."""
    missing = np.flatnonzero(~present[: plan.used])
    return int(missing[0]) // cfg.train.batch if len(missing) else cfg.train.steps
