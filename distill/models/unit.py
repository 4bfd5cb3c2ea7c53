"""Vectors of length 1, with a gradient in few passes: 32,768 prototypes are the largest matrix of a small student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORTEST = 1e-12  # shorter vectors are divided by this


def unit(x: Tensor) -> Tensor:
    """`x [..., d]` divided by its length, as `F.normalize(x, dim=-1)`, which is the plain reference."""
    return _Unit.apply(x)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(SHORTEST)  # [..., 1]
        direction = x / length
        ctx.save_for_backward(direction, length)
        return direction

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # grad: [..., d]
        direction, length = ctx.saved_tensors
        along = (grad * direction).sum(dim=-1, keepdim=True)  # [..., 1] what would change the length alone
        along.masked_fill_(length == SHORTEST, 0)
        return torch.addcmul(grad, direction, along, value=-1).div_(length)
