"""The text tower: a bidirectional transformer over caption tokens, averaged over the real ones."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.models.arch import Arch
from distill.models.attention import Attention, Layout
from distill.models.block import Block
from distill.models.init import init_block
from distill.models.positions import sinusoids
from distill.models.vision import NORM_EPS

POOL_EPS = 1e-8


class TextTower(nn.Module):
    """Text encoder of the paper: sinusoidal positions, pre-LN blocks with ReLU, final norm, masked mean pooling.

    Token embeddings start with std 1 / sqrt(width) and are multiplied by sqrt(width), so they have the sinusoids'
    scale. Width and heads are the image tower's, so no projection is needed before the contrastive loss. `layers`
    overrides the size's number; `dropout` acts on attention weights, projections and MLPs. `norm_eps` is of all norms:
    the paper's released PyTorch files want 1e-5.
    """

    positions: Tensor

    def __init__(
        self,
        arch: Arch,
        vocabulary: int,
        layers: int | None = None,
        context: int = 64,
        dropout: float = 0.0,
        norm_eps: float = NORM_EPS,
    ):
        super().__init__()
        self.arch, self.vocabulary, self.context, self.dropout = arch, vocabulary, context, dropout
        self.width, self.layers = arch.width, layers or arch.text_layers
        self.embedding = nn.Embedding(vocabulary, arch.width)
        nn.init.normal_(self.embedding.weight, std=arch.width**-0.5)
        self.register_buffer("positions", sinusoids(context, arch.width), persistent=False)
        self.blocks = nn.ModuleList(_block(arch, dropout) for _ in range(self.layers))
        self.norm = nn.LayerNorm(arch.width)
        self.set_norm_eps(norm_eps)

    def set_norm_eps(self, eps: float) -> None:
        """Gives every norm this epsilon, so that weights trained with it mean the same here."""
        self.norm_eps = eps
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        """`ids` int64 `[B, L]`, `valid` bool `[B, L]` (real tokens; the rest is padding), L <= context -> `[B, D]`.

        The result depends on real tokens alone. A row without any gives zeros.
        """
        return self._encode([(ids, valid)])[0]

    def slots(self, ids: Tensor, valid: Tensor) -> Tensor:
        """`forward` for C captions an image, `[B, C, L]` each -> `[B, C, D]`, in one pass.

        On a CPU each slot is cut to its own longest caption; the tokens of all lie end to end.
        """
        return torch.stack(self._encode(list(zip(ids.unbind(1), valid.unbind(1)))), dim=1)

    def _encode(self, captions: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Groups of `(ids, valid)`, `[B, L]` each, in one pass: `[B, D]` each."""
        trimmed = [_trim(ids, valid) for ids, valid in captions]
        embedded = [self.embedding(ids) * self.width**0.5 + self.positions[: ids.shape[1]] for ids, _ in trimmed]
        # a row without real tokens attends to its padding: no NaN
        keys = [valid | ~valid.any(dim=1, keepdim=True) for _, valid in trimmed]  # [B, L] each
        layout = Layout.of(embedded, [key[:, None, None, :] for key in keys])
        x = layout.join(embedded)[None]  # [1, T, D]
        for block in self.blocks:
            x = block(x, attn_mask=layout)
        return [_pool(part, valid) for part, (_, valid) in zip(layout.cut(self.norm(x)[0]), trimmed)]

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able: `TextTower.from_config` makes a tower of the same shape."""
        return {
            "arch": asdict(self.arch),
            "vocabulary": self.vocabulary,
            "layers": self.layers,
            "context": self.context,
            "dropout": self.dropout,
            "norm_eps": self.norm_eps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TextTower:
        return cls(Arch(**config["arch"]), **{key: value for key, value in config.items() if key != "arch"})


def _block(arch: Arch, dropout: float) -> Block:
    norm: Any = partial(nn.LayerNorm, eps=NORM_EPS)
    block = Block(
        arch.width,
        arch.heads,
        mlp_ratio=arch.text_mlp / arch.width,
        qkv_bias=True,
        proj_drop=dropout,
        attn_drop=dropout,
        norm_layer=norm,
        act_layer=nn.ReLU,
        attn_layer=Attention,
    )
    init_block(block)
    return block


def _pool(x: Tensor, valid: Tensor) -> Tensor:
    """The mean of the real tokens: `[B, L, D]`, `[B, L]` -> `[B, D]`."""
    weight = valid[..., None].to(x.dtype)  # [B, L, 1]
    return (x * weight).sum(dim=1) / (weight.sum(dim=1) + POOL_EPS)


def _trim(ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Drops the columns after the batch's last real token, on CPU; elsewhere the length would have to be waited for."""
    if ids.device.type != "cpu":
        return ids, valid
    used = valid.any(dim=0).nonzero()  # [columns in use, 1]
    length = int(used[-1]) + 1 if len(used) else 1
    return ids[:, :length], valid[:, :length]
