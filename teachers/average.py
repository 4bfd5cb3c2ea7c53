"""Exponential moving averages of modules, and the check of what is shared."""

from __future__ import annotations

import torch
from torch import nn

from distill.models.sharding import here, is_sharded, placed_like


@torch.no_grad()
def follow(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * source, for parameters; buffers are copied.

    Either may be spread over ranks (then collective): each rank moves the slices that its average holds.
    """
    mine: list[torch.Tensor] = list(average.parameters())
    theirs = [p.detach() for p in source.parameters()]
    if any(map(is_sharded, mine + theirs)):
        for own, other in zip(mine, theirs):  # one at a time: some are gathered whole
            here(own).lerp_(here(placed_like(other, own)), 1.0 - momentum)
    else:
        torch._foreach_lerp_(mine, theirs, 1.0 - momentum)
    for own, other in zip(average.buffers(), source.buffers()):
        own.copy_(other)


def shared_tensors(a: nn.Module, b: nn.Module) -> list[str]:
    """Names (in `a`) of the parameters and buffers that `a` and `b` hold as one tensor in memory."""
    theirs = {t.data_ptr() for t in _tensors(b).values() if t.numel()}
    return [name for name, t in _tensors(a).items() if t.data_ptr() in theirs]


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
