"""`train.checkpointing`: activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from functools import partial

import timm.models.vision_transformer
from torch import nn
from torch.utils.checkpoint import checkpoint

from distill.models.block import Block


def recompute_blocks(module: nn.Module, kind: str) -> None:
    """Makes every trained transformer block in `module`, of images and texts, keep less for the backward pass.

    `none`: what `Block` keeps. `full`: a block keeps its input alone, for one more forward pass. `selective`: it keeps
    what goes into attention and comes out of it too, half of what it keeps under `none`, and makes the rest again, for
    one more pass through the projection and the first layer of the MLP. Losses and gradients are the same bit by bit,
    dropout included. To be called before the weights are sharded, and after copies of the module were made: a copy of
    such a block would run the original.
    """
    if kind == "none":
        return
    for block in module.modules():
        if isinstance(block, Block) and any(p.requires_grad for p in block.parameters()):
            # The plain ways are made again: they keep the last product's input before they multiply, and stop there.
            if kind == "full":
                whole = partial(timm.models.vision_transformer.Block.forward, block)
                block.forward = partial(checkpoint, whole, use_reentrant=False)  # type: ignore[method-assign]
            else:
                rest = partial(checkpoint, block.after_attention_plain, use_reentrant=False)
                block.after_attention = rest  # type: ignore[method-assign]
