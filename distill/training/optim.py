"""Optimisers and their parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from distill.config.schema import OptimConfig
from distill.training.learner import Learner

# Besides everything one-dimensional: biases, norms, scalars.
NO_DECAY_LEAVES = frozenset({"cls_token", "reg_token", "mask_token", "positions"})


def build_optimizer(learners: list[Learner], cfg: OptimConfig, fused: bool = True) -> Optimizer | None:
    """AdamW or Adafactor over what is trained in `learners`; None when everything is frozen.

    Every group carries `scale`: its share of the scheduled learning rate (layer-wise decay). `fused`: one kernel for
    all of AdamW; it takes scaled gradients as they are, so that they cannot be clipped (fp16).
    """
    groups = [group for learner in learners for group in parameter_groups(learner, cfg)]
    if not groups:
        return None
    if cfg.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=cfg.lr)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.betas[0], cfg.betas[1]), fused=fused)


def parameter_groups(learner: Learner, cfg: OptimConfig) -> list[dict[str, Any]]:
    """Trained parameters grouped by (weight decay or not, learning-rate scale)."""
    grouped: dict[tuple[bool, float], list[nn.Parameter]] = {}
    depth = learner.model.image.depth
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name.split(".")[-1] not in NO_DECAY_LEAVES
            key = (decays, cfg.layer_decay ** (depth - layer_of(name, depth)))
            grouped.setdefault(key, []).append(parameter)
    return [
        {"params": params, "weight_decay": cfg.weight_decay if decays else 0.0, "scale": scale}
        for (decays, scale), params in grouped.items()
    ]


def layer_of(name: str, depth: int) -> int:
    """Height of a parameter in the vision trunk: 0 for embeddings, i for block i (1-based), `depth` for all above."""
    parts = name.split(".")
    if parts[:2] != ["model", "image"]:
        return depth
    if "blocks" in parts:
        return int(parts[parts.index("blocks") + 1]) + 1
    return depth if "norm" in parts else 0


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
