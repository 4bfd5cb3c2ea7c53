"""Optimisers and their parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from distill.config.schema import OptimConfig
from distill.errors import UserError
from distill.training.learner import Learner

OF_RECIPE = ("weight_decay", "betas", "scale")  # of a parameter group
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


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any], decay: float, origin: str) -> None:
    """The state `saved` of an optimiser of the same parameters; what the recipe says of its groups stays.

    `decay`: the optim.layer_decay that it was saved under. Raises UserError where this one groups parameters otherwise.
    """
    own = [{key: value for key, value in group.items() if key in OF_RECIPE} for group in optimizer.param_groups]
    then, now = _sizes(saved["param_groups"]), _sizes(optimizer.param_groups)
    if then != now:
        raise UserError(
            f"{origin} groups weights for optim.layer_decay={decay:g} and what was trained. Resume with the original "
            "values, or start a new run with name=OTHER train.stage_from=THIS_RUN."
        )
    optimizer.load_state_dict(saved)
    for group, settings in zip(optimizer.param_groups, own, strict=True):  # the groups are the saved ones by now
        group |= settings


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


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
