"""Linear layers that remember less: what a cheap function made for them is made again in the backward pass.

A linear layer keeps its input for the gradient of its weight. Where a norm, an activation or a concatenation has made
that input, autograd keeps what went in as well: twice as much as either. Here what went in is kept alone, and so are
no low-precision copies of weights. Making it again costs about a hundredth of the layer's products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def lean_linear(layer: nn.Linear, make: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`layer(make(*inputs))`, which is the plain reference, keeping `inputs` alone for the backward pass.

    `make` gives the same whenever it is called, and sees no tensor that needs a gradient but its `inputs`. Values and
    gradients are the same bit by bit. Compiled, it is left to the compiler what to make again.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return layer(make(*inputs))
    return _Lean.apply(make, layer.weight, layer.bias, *inputs)


def normed_linear(layer: nn.Linear, norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`layer(norm(x))`, keeping x and no norm of it; `[..., D]` -> `[..., D_out]`."""

    def make(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

    return lean_linear(layer, make, x, norm.weight, norm.bias)


class _Lean(torch.autograd.Function):
    """Casts for itself: what autocast casts while there are no gradients, it would hand out again without them."""

    @staticmethod
    def forward(ctx: Any, make: Callable[..., Tensor], weight: Tensor, bias: Tensor | None, *inputs: Tensor) -> Tensor:
        device = inputs[0].device.type
        ctx.make, ctx.device, ctx.cast = make, device, torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if ctx.cast else weight.dtype
        ctx.save_for_backward(weight, *inputs)
        ctx.has_bias = bias is not None
        made = make(*inputs).to(ctx.dtype)
        with torch.autocast(device, enabled=False):
            return F.linear(made, weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # grad: [..., D_out]
        weight, *inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        fresh = [x.detach().requires_grad_(want) for x, want in zip(inputs, wanted[3:])]
        with torch.enable_grad(), torch.autocast(ctx.device, ctx.dtype if ctx.cast else None, ctx.cast, False):
            made = ctx.make(*fresh).to(ctx.dtype)  # [..., D_in]
        rows = grad.flatten(0, -2)  # [T, D_out]
        grads: list[Tensor | None] = [None] * len(wanted)
        with torch.autocast(ctx.device, enabled=False):
            if wanted[1]:
                grads[1] = (rows.T @ made.detach().flatten(0, -2)).to(weight.dtype)
            if ctx.has_bias and wanted[2]:
                grads[2] = rows.sum(0).to(weight.dtype)
            by_made = (rows @ weight.to(ctx.dtype)).view_as(made) if made.requires_grad else None
        trained = [i for i, want in enumerate(wanted[3:]) if want]
        if by_made is not None:
            parts = torch.autograd.grad(made, [fresh[i] for i in trained], by_made)
            for i, part in zip(trained, parts):
                grads[3 + i] = part
        return tuple(grads)
