"""Our own training step on made-up batches: the real loop's step, without loader, log or checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

from distill.config.load import load_config
from distill.config.schema import Config
from distill.data.failures import Failures
from distill.training.assemble import assemble
from distill.training.loop import TrainState, optimiser_step
from distill.training.run import training_state
from distill.training.strategy import PRECISIONS
from distill.views.batch import Batch
from distill.views.masks import draw_mask

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
    parts = (pixels, local, np.stack(masks), tokens, valid)
    return Batch(*map(torch.from_numpy, parts), index=torch.arange(size))


def start(cfg: Config) -> TrainState:
    """A run of `cfg` before its first step, on the CPU or the GPU the recipe asks for."""
    precision = PRECISIONS[cfg.train.precision]
    fabric = Fabric(accelerator=cfg.train.accelerator, devices=1, precision=precision)
    state = training_state(cfg, fabric, assemble(cfg, [WORDS]), Failures(1.0, ()))
    state.module.train()
    return state


def one_step(state: TrainState, batch: Batch) -> torch.Tensor:
    """One optimiser step; returns its loss."""
    return optimiser_step(state, [batch])[0].loss
