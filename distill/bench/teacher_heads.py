"""A distillation step by where the frozen teacher's targets come from; the reference is the teacher's own heads.

Forward and backward pass of one batch of recipes/pretrain/scenes_tiny without a mask, the teacher as large as the
student. Heads of every kind are as they would be after they were made; making them is a pass of its own, measured
apart: one batch through the teacher and into k-means, the head's training or the feature statistics. One CPU thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import students
from distill.bench.measure import interleave, use_threads
from distill.bench.rows import Row, less, plain
from distill.config.load import load_config
from distill.config.schema import Config
from distill.data.loader import build_loader
from distill.data.sources import open_source
from distill.models.joint_heads import Heads
from distill.models.tokenizers import build_tokenizer
from distill.training.distiller import Distiller
from distill.training.learner import Learner
from distill.views.batch import Batch
from teachers.frozen import FrozenTeacher
from teachers.heads import feature_widths
from teachers.heads.fitted import FittedHeads
from teachers.heads.preparation import preparations
from teachers.meeting import plan
from teachers.targets import TargetHeads

FEATURES = {"objective.patch.target": "features", "objective.cls.target": "features"}
KINDS: dict[str, dict[str, Any]] = {
    "own": {"teacher.heads.kind": "own"},
    "fitted": {"teacher.heads.kind": "fitted"},
    "trained": {"teacher.heads.kind": "trained"},
    "features": FEATURES,
    "phi_s": FEATURES | {"objective.feature_norm": "phi_s"},
}
QUICK = {"students.0.depth": 1, "text.layers": 1, "heads.prototypes": 8, "train.batch": 4, "data.scenes.count": 16}


def config(name: str, quick: bool) -> Config:
    """The recipe of one arm."""
    base: dict[str, Any] = {"teacher.mode": "frozen", "teacher.source": "run:none", "mask.ratio": 0.0}
    return load_config("pretrain/scenes_tiny", base | KINDS[name] | (QUICK if quick else {})).config


def build(cfg: Config) -> tuple[Distiller, FrozenTeacher, Batch]:
    """A student with its frozen teacher, both at their start, and a batch."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(cfg.text, ["a circle and a star on stripes"])
    student, model = (students.build_model(cfg.students[0], cfg, tokenizer) for _ in range(2))
    width, kind = model.image.width, cfg.teacher.heads.kind
    widths = feature_widths(cfg, width)
    heads: Any = None
    if kind == "fitted":
        heads = FittedHeads(width, cfg.heads.prototypes, cfg.heads.tied)
    elif kind != "auto":
        heads = Heads(width, cfg.heads)
    targets = TargetHeads(heads, cfg.heads.prototypes).with_norms(*widths, cfg.objective.feature_norm)
    size, patch = cfg.views.global_size, model.image.patch
    teacher = FrozenTeacher(model, targets, cfg.objective, plan(size, patch, patch, "targets"), kind if heads else None)
    teacher.to("cpu")
    learner = Learner(student, Heads(width, cfg.heads, *widths), cfg.objective, cfg.objective.patch.tokens, False)
    grid = model.image.grid(size, size)
    batch = next(iter(build_loader(open_source(cfg.data), cfg, tokenizer, grid=grid)))
    return Distiller({"student": learner}, teacher), teacher, batch


def step(name: str, quick: bool) -> Callable[[], Any]:
    """A call that computes loss and gradients of one batch."""
    distiller, teacher, batch = build(config(name, quick))
    teacher.prepared = True
    return lambda: distiller(batch, 0.02).loss.backward()


def making(name: str, quick: bool) -> Callable[[], Any]:
    """A call that makes heads from one batch."""
    cfg = config(name, quick)
    cfg.teacher.heads.steps = 2  # the first one gives the mean, from then on it is clusters
    _, teacher, batch = build(cfg)
    parts = preparations(teacher, cfg)

    def call() -> None:
        output = teacher.look(batch.images())
        for part in parts:
            part.add(output)

    return call


def measure(quick: bool) -> list[Row]:
    rounds = 1 if quick else 30
    with use_threads(1):
        steps = interleave({name: step(name, quick) for name in KINDS}, rounds, warmup=2)
        makings = interleave({name: making(name, quick) for name in ("fitted", "trained", "phi_s")}, rounds, warmup=2)
    own = steps.pop("own").cpu
    rows = [less(f"a step with {name}", time.cpu, own, "s of CPU") for name, time in steps.items()]
    return rows + [plain(f"a batch to make {name}", time.cpu, "s of CPU") for name, time in makings.items()]
