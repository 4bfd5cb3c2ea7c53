"""Self-attention of the towers: several groups of sequences in one pass, by the kernel that is fastest where it runs.

In bf16 on a CPU, PyTorch's fused attention has a slow backward pass: `distill bench attention` measured 2 to 10 times
the time of plain matrix products up to `PLAIN_UP_TO` tokens, where making their N x N weights twice is cheap. In fp32,
for longer sequences, with dropout and on other devices the fused kernel is the faster one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import timm.layers
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PLAIN_UP_TO = 512  # tokens, in bf16 on a CPU


class Layout(NamedTuple):
    """How groups of sequences, each of one length, lie end to end; and which keys each group sees (None: all)."""

    groups: tuple[tuple[int, int], ...]  # (sequences, tokens of each)
    masks: tuple[Tensor | None, ...]  # bool, broadcast to [B_i, H, N_i, N_i]

    @classmethod
    def of(cls, parts: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> Layout:
        """The layout of `parts`, `[B_i, N_i, D]` each, one after the other."""
        groups = tuple((part.shape[0], part.shape[1]) for part in parts)
        return cls(groups, tuple(masks) if masks is not None else (None,) * len(groups))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """`[B_i, N_i, ...]` each -> `[sum of B_i N_i, ...]`."""
        return parts[0].flatten(0, 1) if len(parts) == 1 else torch.cat([part.flatten(0, 1) for part in parts])

    def cut(self, x: Tensor) -> list[Tensor]:
        """`[sum of B_i N_i, ...]` -> `[B_i, N_i, ...]` each."""
        parts = [x] if len(self.groups) == 1 else x.split([count * tokens for count, tokens in self.groups])
        return [part.unflatten(0, group) for part, group in zip(parts, self.groups)]


class Attention(timm.layers.Attention):
    """timm's attention with the same weights, for `[B, N, D]`, or for groups of unlike lengths laid end to end.

    For the latter, x is `[1, sum of B_i N_i, D]` and `attn_mask` is their `Layout`: a token sees its own sequence
    alone. It is passed as a mask, which it stands for, so that timm's block runs as it is.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | Layout | None = None, is_causal: bool = False) -> Tensor:
        assert not is_causal, "the towers see in both directions"
        layout = attn_mask if isinstance(attn_mask, Layout) else Layout.of([x], [attn_mask])
        joined = layout.join(self.mixed(self.qkv(x), layout)).view(x.shape[0], x.shape[1], self.attn_dim)
        return self.proj_drop(self.proj(joined))

    def mixed(self, qkv: Tensor, layout: Layout) -> list[Tensor]:
        """What each token takes from its sequence: `[..., 3 * H * d]`, T tokens in all -> `[B_i, N_i, H * d]` each."""
        qkv = qkv.view(-1, 3, self.num_heads, self.head_dim)  # [T, 3, H, d]
        dropout = self.attn_drop.p if self.training else 0.0
        return [attend(part, mask, dropout) for part, mask in zip(layout.cut(qkv), layout.masks)]


def attend(qkv: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Attention of queries, keys and values `[B, N, 3, H, d]` over N, by the kernel chosen for it: `[B, N, H * d]`.

    `mask`: bool, broadcast to `[B, H, N, N]`, False where a key is not seen; `dropout`: of the attention weights.
    """
    rounded = qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16
    if rounded and qkv.shape[1] <= PLAIN_UP_TO and dropout == 0:
        return attend_plain(qkv, mask)
    return attend_fused(qkv, mask, dropout)


def attend_fused(qkv: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """`attend` by PyTorch's fused kernels, which never hold the N x N weights."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # [B, H, N, d] each
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


def attend_plain(qkv: Tensor, mask: Tensor | None = None) -> Tensor:
    """`attend` by matrix products; the weights `[B, H, N, N]` are made again in the backward pass."""
    return _Plain.apply(qkv, mask)


def _projected(qkv: Tensor) -> Tensor:
    """`[B, N, 3, H, d]` -> queries, keys and values, `[3, B * H, N, d]`."""
    return qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    """`[B * H, N, N]`, of queries and keys `[B * H, N, d]`."""
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(q.shape[2] ** -0.5)
    if mask is not None:
        scores.unflatten(0, (batch, -1)).masked_fill_(~mask, float("-inf"))
    return scores.softmax(dim=-1)


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, _, heads, width = qkv.shape
        q, k, v = _projected(qkv)
        ctx.save_for_backward(qkv, mask)
        mixed = torch.bmm(_weights(q, k, mask, batch), v)  # [B * H, N, d]
        return mixed.view(batch, heads, tokens, width).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # grad: [B, N, H * d]
        qkv, mask = ctx.saved_tensors
        batch, tokens, _, heads, width = qkv.shape
        q, k, v = _projected(qkv)
        weights = _weights(q, k, mask, batch)
        grad = grad.view(batch, tokens, heads, width).transpose(1, 2).reshape(q.shape)  # [B * H, N, d]
        slope = torch.bmm(grad, v.transpose(1, 2))  # [B * H, N, N] by the weights
        slope = torch._softmax_backward_data(slope, weights, -1, weights.dtype).mul_(width**-0.5)  # by the scores
        out = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        parts = (torch.bmm(slope, k), torch.bmm(slope.transpose(1, 2), q), torch.bmm(weights.transpose(1, 2), grad))
        for i, part in enumerate(parts):
            out[:, :, i] = part.view(batch, heads, tokens, width).transpose(1, 2)
        return out, None
