"""Self-attention of queries, keys and values, forward and backward, at the lengths of this field.

Ours are the plain matrix products of `distill.models.attention`, the reference is PyTorch's fused kernel. From these
figures comes the choice of `attend`: plain in bf16 up to 512 tokens, fused otherwise. Widths of ViT-S (6 heads of 64)
and about as many tokens in all for each length. One CPU thread, CPU time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from distill.bench.measure import interleave, use_threads
from distill.bench.rows import Row, less
from distill.models.attention import attend_fused, attend_plain

LENGTHS = {11: "local crop of the tiny recipes", 51: "local crop, 98 px", 258: "224 px", 1026: "448 px"}
TOKENS, HEADS, WIDTH = 2064, 6, 64


def prepare(kernel: Callable[..., torch.Tensor], length: int, dtype: torch.dtype, tokens: int) -> Callable[[], Any]:
    """A call of `kernel` and its gradient for `tokens` tokens in sequences of `length`."""
    torch.manual_seed(0)
    qkv = torch.randn(max(1, tokens // length), length, 3, HEADS, WIDTH, dtype=dtype).requires_grad_()
    slope = torch.randn(len(qkv), length, HEADS * WIDTH, dtype=dtype)
    return lambda: torch.autograd.grad(kernel(qkv), qkv, slope)


def measure(quick: bool) -> list[Row]:
    rows = []
    with use_threads(1):
        for dtype in (torch.float32, torch.bfloat16):
            for length, where in LENGTHS.items():
                tokens = length if quick else TOKENS
                calls = {k.__name__: prepare(k, length, dtype, tokens) for k in (attend_plain, attend_fused)}
                time = interleave(calls, rounds=1 if quick else 7)
                what = f"{length} tokens ({where}), {str(dtype).removeprefix('torch.')}"
                rows.append(less(what, 1e3 * time["attend_plain"].cpu, 1e3 * time["attend_fused"].cpu, "ms of CPU"))
    return rows
