"""Where objectives leave low precision: prototypes are multiplied in it, softmaxes and sums are not."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.objectives.scratch import Scratch


def full(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is when it is fp64."""
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b` for matrices, without gradient, in the dtype autocast asks for (else their own); returned in fp32.

    The result is not rounded to low precision: a cosine with 8 bits, divided by a temperature of 0.04, would be off
    by 0.1. A CPU, which only has products that round, multiplies in fp32. fp64 inputs stay fp64. `out`: where the
    result goes.
    """
    dtype = _asked(a, b)
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and dtype in (torch.bfloat16, torch.float16):
            return torch.mm(a.to(dtype), b.to(dtype), out_dtype=torch.float32, out=out)
        return torch.mm(full(a), full(b), out=out)


def rough(x: Tensor) -> Tensor:
    """`x` in the dtype autocast asks for, else as it is: good enough for the products that gradients are made of."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


@torch.no_grad()
def add_product(total: Tensor, a: Tensor, b: Tensor, scratch: Scratch) -> None:
    """`total += a @ b`, the product rounded as their dtype is; needs a matrix for it where that is not total's own."""
    with torch.autocast(total.device.type, enabled=False):
        if a.dtype == total.dtype:
            total.addmm_(a, b)
        else:
            total += torch.mm(a, b, out=scratch.take("product", total.shape, like=a))


def _asked(a: Tensor, b: Tensor) -> torch.dtype:
    device = a.device.type
    cast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if cast else torch.promote_types(a.dtype, b.dtype)
