"""The value path: patch features for zero-shot segmentation (MaskCLIP's idea, as in the paper)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F


class ValueBlock(nn.Module):
    """A block that adds, to its ordinary output, its patches without attention.

    The value path of a patch is LN1 -> value -> projection -> + input -> LN2 -> MLP -> + input: it keeps its own value
    instead of mixing everyone's. The CLS tokens have no value path: mixing is what makes them global.
    """

    block: Any  # timm's Block

    def __init__(self, block: nn.Module, prefix_tokens: int):
        super().__init__()
        self.block, self.prefix_tokens = block, prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C + N, D]` -> `[B, C + N + N, D]`: CLS, patches, then patches by the value path."""
        return torch.cat([self.block(x), self.values(x[:, self.prefix_tokens :])], dim=1)

    def values(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        block, attention = self.block, self.block.attn
        start = 2 * attention.qkv.out_features // 3  # after the queries and keys
        bias = None if attention.qkv.bias is None else attention.qkv.bias[start:]
        v = F.linear(block.norm1(x), attention.qkv.weight[start:], bias)  # [B, N, D]
        x = x + block.drop_path1(block.ls1(attention.proj(v)))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def value_view(trunk: VisionTransformer) -> VisionTransformer:
    """`trunk` with a `ValueBlock` at its end: shares weights and timm's forward, and leaves `trunk` as it is."""
    last = ValueBlock(trunk.blocks[-1], trunk.num_prefix_tokens)
    return with_blocks(trunk, [*trunk.blocks[:-1], last])


def with_blocks(trunk: VisionTransformer, blocks: Iterable[nn.Module]) -> VisionTransformer:
    """`trunk` with other blocks: shares weights and timm's forward, and leaves `trunk` as it is."""
    view = copy.copy(trunk)
    view._modules = dict(trunk._modules)  # its own table of children, so that replacing one leaves the trunk alone
    view.blocks = nn.Sequential(*blocks)
    return view
