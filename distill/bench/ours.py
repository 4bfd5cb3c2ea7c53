"""Our own training step on made-up batches: the real loop's step, without loader, log or checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

import students
from distill.config.load import load_config
from distill.config.schema import Config, StudentConfig
from distill.data.failures import Failures
from distill.models.joint_heads import Heads
from distill.training.assemble import Assembly, assemble
from distill.training.distiller import Distiller
from distill.training.loop import TrainState, optimiser_step
from distill.training.run import training_state
from distill.training.strategy import PRECISIONS
from distill.views.batch import Batch
from distill.views.masks import draw_mask
from teachers.frozen import FrozenTeacher
from teachers.meeting import plan
from teachers.targets import TargetHeads

CAPTION_TOKENS = ((8, 20), (20, 48))  # shortest and longest caption of each CLS token: alt-texts, descriptions


def configure(recipe: str, changes: dict[str, Any]) -> Config:
    """The recipe's config with `changes`, dotted keys. Batches are made up, so no data is opened."""
    return load_config(recipe, changes).config


WORDS = " ".join(f"word{i}" for i in range(10_000))  # what the word tokenizer is trained on


def fake_batch(cfg: Config, vocabulary: int, seed: int = 0) -> Batch:
    """A batch of noise with the recipe's shapes, masks and plausible caption lengths."""
    rng = np.random.default_rng(seed)
    size, views = cfg.train.batch // cfg.train.accumulate, cfg.views
    side = views.global_size // int(cfg.students[0].arch.rpartition("/")[2])
    masks = [draw_mask((side, side), cfg.mask.ratio, cfg.mask.kind, rng) for _ in range(size)]
    slots = 2 if cfg.captions.cls2 else 1
    context = cfg.text.context
    bounds = [(min(low, context), min(high, context)) for low, high in CAPTION_TOKENS[:slots]]
    lengths = np.stack([rng.integers(low, high + 1, size) for low, high in bounds], axis=1)  # [B, C]
    valid = np.arange(context) < lengths[..., None]  # [B, C, L]
    tokens = np.where(valid, rng.integers(1, vocabulary, valid.shape), 0)
    pixels = rng.integers(0, 256, (size, 3, views.global_size, views.global_size), dtype=np.uint8)
    local = rng.integers(0, 256, (size, views.locals, 3, views.local_size, views.local_size), dtype=np.uint8)
    parts = {"global_": pixels, "local": local, "mask": np.stack(masks), "tokens": tokens, "valid": valid}
    tensors: dict[str, Any] = {name: torch.from_numpy(part) for name, part in parts.items()}
    return Batch(**tensors, index=torch.arange(size), masked=int(parts["mask"].sum()))


def start(cfg: Config, teacher: str | None = None) -> TrainState:
    """A run of `cfg` before its first step, on the device the recipe asks for.

    `teacher`: the size of a frozen teacher of random weights, in place of the recipe's teacher.
    """
    precision = PRECISIONS[cfg.train.precision]
    fabric = Fabric(accelerator=cfg.train.accelerator, devices=1, precision=precision)
    assembly = assemble(cfg, [WORDS])
    if teacher is not None:
        assembly = with_frozen(cfg, assembly, teacher)
    state = training_state(cfg, fabric, assembly, Failures(1.0, ()))
    state.module.train()
    return state


def with_frozen(cfg: Config, assembly: Assembly, arch: str) -> Assembly:
    """The same students after a frozen teacher of random weights."""
    learners = assembly.distiller.learners()
    model = students.build_model(StudentConfig(name="teacher", arch=arch), cfg, assembly.tokenizer)
    heads = TargetHeads(Heads(model.image.width, cfg.heads), cfg.heads.prototypes)
    patch = next(iter(learners.values())).model.image.patch
    frozen = FrozenTeacher(
        model, heads, cfg.objective, plan(cfg.views.global_size, patch, model.image.patch, "targets")
    )
    return replace(assembly, teacher=frozen, distiller=Distiller(learners, frozen))


def one_step(state: TrainState, batch: Batch) -> torch.Tensor:
    """One optimiser step; returns its loss."""
    return optimiser_step(state, [batch])[0].loss
