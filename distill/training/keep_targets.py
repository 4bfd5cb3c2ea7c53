"""A frozen teacher's cache, planned and opened for a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from distill.config.schema import Config
from distill.data.sample import Source
from distill.data.stream import StreamSource
from distill.errors import UserError
from teachers.base import Teacher
from teachers.cache_plan import CachePlan, plan_cache
from teachers.cache_store import open_store
from teachers.frozen import FrozenTeacher
from teachers.target_cache import TargetCache


def plan_targets(cfg: Config, teacher: Teacher, source: Source | StreamSource) -> CachePlan | None:
    """The plan of the cache that `teacher.cache` names; None where it names none or there are no targets.

    Writes nothing. Raises `UserError` for data without an index, and for a cache too large or without space.
    """
    if cfg.teacher.cache.path is None or not isinstance(teacher, FrozenTeacher):
        return None
    if isinstance(source, StreamSource):
        raise UserError(
            "teacher.cache.path needs data that is read by index, as a stream gives other samples in every pass. "
            "Copy the shards here, or set teacher.cache.path=null."
        )
    assert teacher.heads is not None
    widths = teacher.heads.embedded_widths(cfg.objective)
    plan = plan_cache(cfg, len(source), teacher.meeting.student, widths)
    if (problem := plan.problem()) is not None:
        raise UserError(problem)
    return plan


def keep_targets(cfg: Config, teacher: Teacher, plan: CachePlan) -> TargetCache:
    """Opens the cache and gives it to the teacher, whose weights are final by now.

    Raises `UserError` when the folder holds other targets, or targets of other views.
    """
    assert isinstance(teacher, FrozenTeacher)
    store = open_store(plan.path, marks(cfg, teacher, plan), plan.rows, plan.shape.bytes)
    teacher.cache = TargetCache(store, plan.shape)
    return teacher.cache


def marks(cfg: Config, teacher: FrozenTeacher, plan: CachePlan) -> dict[str, Any]:
    """What makes rows those of this run: the teacher's weights, how it sees the views, and which views there are."""
    assert teacher.heads is not None
    views = cfg.views
    return {
        "teacher": weights_digest(m for m in (teacher.model.image, teacher.heads.heads) if m is not None),
        "meeting": asdict(teacher.meeting),
        "patch_target": cfg.objective.patch.target,
        "cls_target": cfg.objective.cls.target,
        "shape": asdict(plan.shape),
        "seed": cfg.seed,
        "samples": plan.samples,
        "epoch": plan.epoch_size,
        "epochs": plan.epochs,
        "shuffle": cfg.data.shuffle,
        "locals": views.locals,  # flips are drawn together
        "global_scale": views.global_scale,
        "flip": views.flip,
    }


def weights_digest(modules: Iterable[nn.Module]) -> str:
    """Over names, types and values of all weights and buffers; hex."""
    digest = hashlib.blake2b(digest_size=16)
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            value = value.full_tensor() if isinstance(value, DTensor) else value  # spread over ranks: all take part
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
