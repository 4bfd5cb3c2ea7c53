"""`train.checkpointing`: activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

aten: Any = torch.ops.aten
# What `selective` keeps: results that take long to compute. Norms, activations and sums are made again.
KEPT = [
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
]


def recompute_blocks(module: nn.Module, kind: str) -> None:
    """Makes every trained transformer block in `module`, of images and texts, keep less for the backward pass.

    `none`: everything is kept. `full`: a block keeps its input alone, for one more forward pass. `selective`: it keeps
    its matrix products and attention, for little more time. Losses and gradients are the same bit by bit, dropout
    included. To be called before the weights are sharded, and after copies of the module were made: a copy of such a
    block would run the original.
    """
    if kind == "none":
        return
    context = partial(create_selective_checkpoint_contexts, KEPT) if kind == "selective" else noop_context_fn
    for block in module.modules():
        if isinstance(block, Block) and any(p.requires_grad for p in block.parameters()):
            again = partial(checkpoint, block.forward, use_reentrant=False, context_fn=context)
            block.forward = again  # type: ignore[method-assign]
