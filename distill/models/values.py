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


class OnlyValueBlock(ValueBlock):
    """A block that gives its CLS tokens and, of the patches, the value path alone: no attention of patches."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C + N, D]` -> `[B, C + N, D]`: CLS as `ValueBlock` has them, then patches by the value path."""
        return torch.cat([self.cls(x), self.values(x[:, self.prefix_tokens :])], dim=1)

    def cls(self, x: Tensor) -> Tensor:  # [B, C + N, D] -> [B, C, D]
        block, attention, count = self.block, self.block.attn, self.prefix_tokens
        bias, width = attention.qkv.bias, attention.qkv.out_features // 3
        parts = (None, None) if bias is None else bias.split([width, 2 * width])
        query, rest = attention.qkv.weight.split([width, 2 * width])
        normed = block.norm1(x)
        q = F.linear(normed[:, :count], query, parts[0])  # [B, C, D]
        k, v = F.linear(normed, rest, parts[1]).chunk(2, dim=-1)  # [B, C + N, D] each
        q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=attention.scale)  # [B, heads, C, D / heads]
        y = x[:, :count] + block.drop_path1(block.ls1(attention.proj(mixed.transpose(1, 2).flatten(2))))
        return y + block.drop_path2(block.ls2(block.mlp(block.norm2(y))))


def value_view(trunk: VisionTransformer, only: bool = False) -> VisionTransformer:
    """`trunk` with a `ValueBlock` at its end (`only`: an `OnlyValueBlock`): shares weights and timm's forward."""
    kind = OnlyValueBlock if only else ValueBlock
    return with_blocks(trunk, [*trunk.blocks[:-1], kind(trunk.blocks[-1], trunk.num_prefix_tokens)])


def with_blocks(trunk: VisionTransformer, blocks: Iterable[nn.Module]) -> VisionTransformer:
    """`trunk` with other blocks: shares weights and timm's forward, and leaves `trunk` as it is."""
    view = copy.copy(trunk)
    view._modules = dict(trunk._modules)  # its own table of children, so that replacing one leaves the trunk alone
    view.blocks = nn.Sequential(*blocks)
    return view
