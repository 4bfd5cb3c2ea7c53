"""Makes what a frozen teacher's targets need, once, before the first step; a resumed run has it in its checkpoint."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import track

from distill.config.schema import Config
from distill.data.loader import build_loader
from distill.models.tokenizers import Tokenizer
from teachers.base import Teacher
from teachers.frozen import FrozenTeacher
from teachers.heads import describe
from teachers.heads.preparation import preparations


def prepare_teacher(
    teacher: Teacher,
    cfg: Config,
    fabric: Fabric,
    tokenizer: Tokenizer,
    source: Any,
    grid: tuple[int, int],
    out: Console,
) -> float:
    """Fits or trains the teacher's heads, or measures its features, where the recipe asks for it and nothing has yet.

    The first `teacher.heads.steps` batches of the run's own order are looked at, global crops alone; training then
    starts at its first batch all the same. `grid`: the students' patches in the global crop. Returns the seconds it
    took, 0 where nothing was to be made. Raises UserError.
    """
    if not isinstance(teacher, FrozenTeacher) or teacher.prepared:
        return 0.0
    began, speaks = time.monotonic(), fabric.is_global_zero
    if speaks:
        out.print(f"Preparing the teacher: {describe(cfg, teacher.kind)}", markup=False)
    parts = preparations(teacher, cfg)
    rank, world = fabric.global_rank, fabric.world_size
    loader = build_loader(source, global_crops(cfg), tokenizer, grid=grid, rank=rank, world=world)
    hidden = not (speaks and out.is_terminal)
    for batch in track(loader, "teacher", total=len(loader), console=out, transient=True, disable=hidden):
        images = batch.to(fabric.device, non_blocking=True).images()
        with torch.no_grad(), fabric.autocast():
            output = teacher.look(images)
        for part in parts:
            part.add(output)
    for part in parts:
        part.finish()
    teacher.prepared = True
    teacher.to(fabric.device)  # back to no gradient and evaluation mode
    seconds = time.monotonic() - began
    if speaks:
        out.print(f"Prepared in {seconds:.0f} s: {'; '.join(part.report() for part in parts)}.", markup=False)
    return seconds


def global_crops(cfg: Config) -> Config:
    """The recipe cut to the batches that are looked at, without local crops."""
    train = replace(cfg.train, steps=cfg.teacher.heads.steps)
    return replace(cfg, train=train, views=replace(cfg.views, locals=0))
