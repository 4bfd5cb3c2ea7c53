"""What a run says at its start: teacher, students, objective, data, receipts, and what differs from the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from distill.config.load import Resolved
from distill.config.schema import Config
from distill.data.decoders import choose_decoder
from distill.data.sample import Source
from distill.data.stream import StreamSource
from distill.training.assemble import Assembly
from distill.training.receipts import Receipts, count
from teachers.cache_plan import CachePlan
from teachers.frozen import FrozenTeacher
from teachers.heads import describe

if TYPE_CHECKING:
    from lightning.fabric import Fabric

TEACHER_WORDS = {
    "frozen": "frozen",
    "ema": "average of the student, trunk and heads",
    "ema_head": "the student's own trunk, averaged heads",
    "cotrained": "pretrains in the same step",
    "none": "the student itself, nothing averaged",
}


def banner(
    resolved: Resolved,
    assembly: Assembly,
    counts: Receipts,
    source: Source | StreamSource,
    folder: Path,
    fabric: Fabric,
    kept: CachePlan | None = None,
) -> Panel:
    cfg = resolved.config
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()

    def add(head: str, text: str) -> None:
        table.add_row(head, Text(text))  # plain: values such as [web] are not markup

    add("teacher", _teacher(cfg, assembly))
    for student in cfg.students:
        learner = assembly.distiller.student(student.name)
        frozen = f", frozen: {' '.join(student.freeze)}" if student.freeze else ""
        spare = "" if student.ema is None else f", averaged by {student.ema:g} as {student.name}.ema"
        add(
            "student",
            f"{student.name}: {student.arch}, vision {student.init}, text {cfg.text.init}{frozen}{spare}, "
            f"{count(learner) / 1e6:.2f} M parameters",
        )
    add("objective", objective_line(cfg))
    add("data", data_line(cfg, source))
    if kept is not None:
        add("targets", kept.line())
    add("receipts", receipts_line(cfg, assembly, counts))
    if assembly.unused:
        add("", f"{len(assembly.unused)} tensors get no gradient from this objective and are not trained")
    add("hardware", hardware_line(cfg, fabric))
    add("folder", str(folder))
    for warning in resolved.warnings:
        add("note", warning)
    changes = resolved.differences()
    body = [table] if not changes else [table, "", "Differs from the recipe:", *(Text(f"  {line}") for line in changes)]
    return Panel(Group(*body), title=f"distill run {folder.name}", title_align="left")


def _teacher(cfg: Config, assembly: Assembly) -> str:
    words = f"{cfg.teacher.mode}: {TEACHER_WORDS[cfg.teacher.mode]}"
    if assembly.opened is not None:
        line = f"{words}\n{assembly.opened.line()}"
        teacher = assembly.teacher
        return f"{line}\n{describe(cfg, teacher.kind)}" if isinstance(teacher, FrozenTeacher) else line
    if cfg.teacher.mode == "cotrained":
        return f"{words}, {cfg.teacher.arch}, supervises {cfg.teacher.tokens} tokens"
    return words


def hardware_line(cfg: Config, fabric: Fabric) -> str:
    line = f"{fabric.world_size} x {fabric.device.type}, precision {fabric.strategy.precision.precision}"
    line += f", {cfg.train.strategy}" if fabric.world_size > 1 else ""
    return line + (f", {cfg.train.checkpointing} checkpointing" if cfg.train.checkpointing != "none" else "")


def objective_line(cfg: Config) -> str:
    """The loss in one line, with weights."""
    objective, parts = cfg.objective, []
    if objective.contrastive.weight:
        captions = f"CLS-1~{'|'.join(cfg.captions.cls1)}"
        captions += f", CLS-2~{'|'.join(cfg.captions.cls2)}" if cfg.captions.cls2 else ""
        parts.append(f"{objective.contrastive.weight:g} contrastive ({objective.contrastive.loss}; {captions})")
    if objective.cls.weight:
        parts.append(f"{objective.cls.weight:g} cls ({cfg.views.locals} locals, {objective.cls.target})")
    if objective.patch.weight:
        parts.append(
            f"{objective.patch.weight:g} patch ({objective.patch.tokens} tokens, "
            f"mask {cfg.mask.ratio:g} {cfg.mask.kind}, {objective.patch.target})"
        )
    return " + ".join(parts)


def data_line(cfg: Config, source: Source | StreamSource) -> str:
    where = "scenes" if cfg.data.source == "scenes" else str(cfg.data.shards)
    seen = cfg.train.steps * cfg.train.batch
    size = cfg.data.epoch or len(source)  # type: ignore[arg-type]  # a stream has an epoch instead of a length
    line = f"{where}: {size:,} samples, {cfg.train.steps:,} steps of {cfg.train.batch} = {seen / size:.1f} epochs"
    return line if cfg.data.source == "scenes" else f"{line}, JPEGs decoded by {choose_decoder(cfg.data.decoder)}"


def receipts_line(cfg: Config, assembly: Assembly, counts: Receipts) -> str:
    """Parameters trained, averaged, frozen; for head-only EMA what it saves against full EMA; what is shared."""
    line = f"{counts.trained:,} trained, {counts.averaged:,} averaged, {counts.frozen:,} frozen"
    if cfg.teacher.mode == "ema_head" and counts.averaged:
        first = next(iter(counts.by_part.values()))
        full = first["image"] + first["heads"]
        line += (
            f" (full EMA would average {full:,}: saves {first['image'] / (2 * full):.1%} of image + heads + averages)"
        )
    shared = "; ".join(f"{name} shares with the teacher: {what}" for name, what in counts.shared.items())
    return f"{line}\n{shared}"
