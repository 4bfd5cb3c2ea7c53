"""The transformer block of the towers."""

from __future__ import annotations

from typing import Any

import timm.models.vision_transformer
from timm.layers import SwiGLU
from torch import Tensor, nn

from distill.models.attention import Attention, Layout
from distill.models.lean import lean_linear, normed_linear


class Block(timm.models.vision_transformer.Block):
    """timm's block with the same weights and values, which keeps less for the backward pass.

    For every token it keeps its input, what goes into attention and comes out of it, the sum after attention and the
    hidden layer before its activation: about half of what timm's keeps. timm's `forward` is the plain reference.
    """

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    attn: Attention
    mlp: Any  # timm's Mlp or SwiGLU

    def forward(self, x: Tensor, attn_mask: Tensor | Layout | None = None, is_causal: bool = False) -> Tensor:
        assert not is_causal, "the towers see in both directions"
        layout = attn_mask if isinstance(attn_mask, Layout) else Layout.of([x], [attn_mask])
        return self.after_attention(x, layout, *self.attention(x, layout))

    def attention(self, x: Tensor, layout: Layout) -> list[Tensor]:
        """What attention mixes of x `[B, N, D]`, laid out as `layout` says: `[B_i, N_i, D_attention]` each."""
        return self.attn.mixed(normed_linear(self.attn.qkv, self.norm1, x), layout)

    def after_attention(self, x: Tensor, layout: Layout, *mixed: Tensor) -> Tensor:
        """The rest of the block, for the input x `[B, N, D]` and what attention has mixed of it."""
        joined = lean_linear(self.attn.proj, lambda *parts: layout.join(parts), *mixed).view(x.shape)
        x = x + self.drop_path1(self.ls1(self.attn.proj_drop(joined)))
        return x + self.drop_path2(self.ls2(self._mlp(x)))

    def after_attention_plain(self, x: Tensor, layout: Layout, *mixed: Tensor) -> Tensor:
        """The plain reference of `after_attention`."""
        joined = self.attn.proj(layout.join(mixed)).view(x.shape)
        x = x + self.drop_path1(self.ls1(self.attn.proj_drop(joined)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _mlp(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        mlp = self.mlp
        if isinstance(mlp, SwiGLU):
            normed = self.norm2(x)  # kept: made again for each of two layers, its gradients would be rounded apart
            hidden = [mlp.fc1_g(normed), mlp.fc1_x(normed)]  # [B, N, hidden] each
        else:
            hidden = [normed_linear(mlp.fc1, self.norm2, x)]
        draws = self.training and mlp.drop1.p > 0  # at random, so not the same again
        if draws or isinstance(mlp.act, nn.ReLU):  # whose gradient needs its output alone
            return mlp.drop2(lean_linear(mlp.fc2, _same, mlp.drop1(self._activate(*hidden))))
        return mlp.drop2(lean_linear(mlp.fc2, self._activate, *hidden))

    def _activate(self, hidden: Tensor, *gated: Tensor) -> Tensor:
        active = self.mlp.act.forward(hidden)  # no call: hooks of modules do not belong into the backward pass
        return active * gated[0] if gated else active


def _same(x: Tensor) -> Tensor:
    return x
