"""Where objectives leave low precision: prototypes are multiplied in it, softmaxes and sums are not."""

from __future__ import annotations

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is when it is fp64."""
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` for matrices, without gradient, in the dtype autocast asks for (else their own); returned in fp32.

    The result is not rounded to low precision: a cosine with 8 bits, divided by a temperature of 0.04, would be off
    by 0.1. A CPU, which only has products that round, multiplies in fp32. fp64 inputs stay fp64.
    """
    dtype = _asked(a, b)
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and dtype in (torch.bfloat16, torch.float16):
            return torch.mm(a.to(dtype), b.to(dtype), out_dtype=torch.float32)
        return full(a) @ full(b)


@torch.no_grad()
def rough_matmul(a: Tensor, b: Tensor) -> Tensor:
    """As `matmul`, but the result may be rounded to the dtype autocast asks for: good enough for gradients."""
    dtype = _asked(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return full(a.to(dtype) @ b.to(dtype))


@torch.no_grad()
def add_rough_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds `rough_matmul(a, b)` to `total`, in place; without a second matrix of its size where nothing is rounded."""
    if _asked(a, b) == total.dtype:
        total.addmm_(a, b)
    else:
        total += rough_matmul(a, b)


def _asked(a: Tensor, b: Tensor) -> torch.dtype:
    device = a.device.type
    cast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if cast else torch.promote_types(a.dtype, b.dtype)
