"""Random weights in the official layouts of TIPS, and the encoders that read them, written from the published facts.

Nothing here uses our towers: these are the independent references of the parity tests. Arrays are numpy; `vision` and
`text` functions return what the official encoders return.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """An architecture; `swiglu` for the giant's feed-forward layer."""

    width: int
    depth: int
    heads: int
    mlp: int
    grid: int
    swiglu: bool = False
    text_layers: int = 2
    text_mlp: int = 96
    vocabulary: int = 40


def _random(seed: int):
    generator = np.random.default_rng(seed)
    return lambda *shape, std=0.3, mean=0.0: (mean + std * generator.standard_normal(shape)).astype(np.float32)


def torch_vision(s: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    r, d = _random(seed), s.width
    arrays = {
        "cls_token": r(1, 1, d),
        "pos_embed": r(1, 1 + s.grid**2, d),
        "register_tokens": r(1, 1, d),
        "mask_token": r(1, d),
        "patch_embed.proj.weight": r(d, 3, 14, 14, std=0.05),
        "patch_embed.proj.bias": r(d),
        "norm.weight": r(d, mean=1),
        "norm.bias": r(d),
    }
    for i in range(s.depth):
        b = f"blocks.{i}."
        for norm in ("norm1", "norm2"):
            arrays |= {f"{b}{norm}.weight": r(d, mean=1), f"{b}{norm}.bias": r(d)}
        for name, out, into in (("attn.qkv", 3 * d, d), ("attn.proj", d, d)):
            arrays |= {f"{b}{name}.weight": r(out, into, std=into**-0.5), f"{b}{name}.bias": r(out)}
        arrays |= {f"{b}ls1.gamma": r(d, mean=1), f"{b}ls2.gamma": r(d, mean=1)}
        first, second = ("w12", "w3") if s.swiglu else ("fc1", "fc2")
        wide = 2 * s.mlp if s.swiglu else s.mlp
        arrays |= {f"{b}mlp.{first}.weight": r(wide, d, std=d**-0.5), f"{b}mlp.{first}.bias": r(wide)}
        arrays |= {f"{b}mlp.{second}.weight": r(d, s.mlp, std=s.mlp**-0.5), f"{b}mlp.{second}.bias": r(d)}
    return arrays


def torch_text(s: Shape, seed: int = 1) -> dict[str, np.ndarray]:
    r, d = _random(seed), s.width
    arrays = {
        "token_embedding.weight": r(s.vocabulary, d, std=d**-0.5),
        "ln_final.weight": r(d, mean=1),
        "ln_final.bias": r(d),
        "temperature": np.float32(0.0051),
    }
    for i in range(s.text_layers):
        b = f"transformer.resblocks.{i}."
        for norm in ("ln_1", "ln_2"):
            arrays |= {f"{b}{norm}.weight": r(d, mean=1), f"{b}{norm}.bias": r(d)}
        arrays |= {f"{b}attn.in_proj_weight": r(3 * d, d, std=d**-0.5), f"{b}attn.in_proj_bias": r(3 * d)}
        arrays |= {f"{b}attn.out_proj.weight": r(d, d, std=d**-0.5), f"{b}attn.out_proj.bias": r(d)}
        arrays |= {f"{b}mlp.c_fc.weight": r(s.text_mlp, d, std=d**-0.5), f"{b}mlp.c_fc.bias": r(s.text_mlp)}
        arrays |= {f"{b}mlp.c_proj.weight": r(d, s.text_mlp, std=s.text_mlp**-0.5), f"{b}mlp.c_proj.bias": r(d)}
    return arrays


def _jax_block(s: Shape, r, b: str, swiglu: bool, mlp: int) -> dict[str, np.ndarray]:
    d, h, e = s.width, s.heads, s.width // s.heads
    arrays = {}
    for norm in ("LayerNorm_0", "LayerNorm_1"):
        arrays |= {f"{b}{norm}/scale": r(d, mean=1), f"{b}{norm}/bias": r(d)}
    attention = f"{b}MultiHeadDotProductAttention_0/"
    for name in ("query", "key", "value"):
        arrays |= {f"{attention}{name}/kernel": r(d, h, e, std=d**-0.5), f"{attention}{name}/bias": r(h, e)}
    arrays |= {f"{attention}out/kernel": r(h, e, d, std=d**-0.5), f"{attention}out/bias": r(d)}
    ffn = b + ("FFNSwiGluFused_0/" if swiglu else "MlpBlock_0/")
    sizes = [(d, mlp), (d, mlp), (mlp, d)] if swiglu else [(d, mlp), (mlp, d)]
    for i, (into, out) in enumerate(sizes):
        arrays |= {f"{ffn}Dense_{i}/kernel": r(into, out, std=into**-0.5), f"{ffn}Dense_{i}/bias": r(out)}
    return arrays


def jax_vision(s: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    r, d, root = _random(seed), s.width, "encoder/ToTokenSequence_0/"
    arrays = {
        f"{root}embedding/kernel": r(14, 14, 3, d, std=0.05),
        f"{root}embedding/bias": r(d),
        f"{root}posembed_input": r(1, s.grid, s.grid, d),
        f"{root}cls": r(1, 2, d),
        "encoder/encoder_norm/scale": r(d, mean=1),
        "encoder/encoder_norm/bias": r(d),
    }
    for i in range(s.depth):
        arrays |= _jax_block(s, r, f"encoder/transformer/encoderblock_{i}/", s.swiglu, s.mlp)
    return arrays


def jax_text(s: Shape, seed: int = 1) -> dict[str, np.ndarray]:
    r, d = _random(seed), s.width
    arrays = {
        "token_emb/emb_var": r(s.vocabulary, d, std=d**-0.5),
        "text_encoder_norm/scale": r(d, mean=1),
        "text_encoder_norm/bias": r(d),
        "temperature_contrastive": np.float32(0.0036),
    }
    for i in range(s.text_layers):
        arrays |= _jax_block(s, r, f"transformer/encoderblock_{i}/", False, s.text_mlp)
    return arrays


# ------------------------------------------------------------------------------------------------ the references


class Reference:
    """The official encoders in plain tensor operations. `layout` decides names, GELU form and the text's epsilon."""

    def __init__(self, s: Shape, layout: str, vision: dict[str, np.ndarray], text: dict[str, np.ndarray]):
        self.s, self.jax = s, layout == "jax"
        self.v = {name: torch.from_numpy(np.asarray(value)) for name, value in vision.items()}
        self.t = {name: torch.from_numpy(np.asarray(value)) for name, value in text.items()}

    def vision(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both CLS `[B, D]`, patches and value-path patches `[B, N, D]`; odd sizes are padded around the centre."""
        s, v = self.s, self.v
        high, wide = (-side % 14 for side in images.shape[-2:])
        images = F.pad(images, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        if self.jax:
            root = "encoder/ToTokenSequence_0/"
            kernel, bias = v[f"{root}embedding/kernel"].permute(3, 2, 0, 1), v[f"{root}embedding/bias"]
            table, cls = v[f"{root}posembed_input"].permute(0, 3, 1, 2), v[f"{root}cls"]
        else:
            kernel, bias = v["patch_embed.proj.weight"], v["patch_embed.proj.bias"]
            table = v["pos_embed"][:, 1:].transpose(1, 2).reshape(1, s.width, s.grid, s.grid)
            cls = torch.cat([v["cls_token"] + v["pos_embed"][:, :1], v["register_tokens"]], dim=1)
        x = F.conv2d(images, kernel, bias, stride=14)
        if x.shape[-2:] != table.shape[-2:]:
            table = F.interpolate(table, size=x.shape[-2:], mode="bilinear", antialias=True)
        x = (x + table).flatten(2).transpose(1, 2)
        x = torch.cat([cls.expand(len(x), -1, -1), x], dim=1)
        for i in range(s.depth - 1):
            x = self._block(x, i)
        values = self._norm(self.v, self._block(x, s.depth - 1, values=True), *self._final(), 1e-6)
        x = self._norm(self.v, self._block(x, s.depth - 1), *self._final(), 1e-6)
        return x[:, 0], x[:, 1], x[:, 2:], values[:, 2:]

    def _final(self) -> tuple[str, str]:
        return ("encoder/encoder_norm/scale", "encoder/encoder_norm/bias") if self.jax else ("norm.weight", "norm.bias")

    def _norm(self, arrays: dict[str, Tensor], x: Tensor, weight: str, bias: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * arrays[weight] + arrays[bias]

    def _block(self, x: Tensor, i: int, values: bool = False) -> Tensor:
        v = self.v
        if self.jax:
            return self._flax_block(v, x, f"encoder/transformer/encoderblock_{i}/", self.s.swiglu, values=values)
        b = f"blocks.{i}."
        y = self._norm(v, x, f"{b}norm1.weight", f"{b}norm1.bias", 1e-6)
        q, k, val = (y @ v[f"{b}attn.qkv.weight"].T + v[f"{b}attn.qkv.bias"]).chunk(3, dim=-1)
        y = val if values else self._attend(q, k, val)
        y = y @ v[f"{b}attn.proj.weight"].T + v[f"{b}attn.proj.bias"]
        x = x + v[f"{b}ls1.gamma"] * y
        y = self._norm(v, x, f"{b}norm2.weight", f"{b}norm2.bias", 1e-6)
        if self.s.swiglu:
            gate, up = (y @ v[f"{b}mlp.w12.weight"].T + v[f"{b}mlp.w12.bias"]).chunk(2, dim=-1)
            y = F.silu(gate) * up @ v[f"{b}mlp.w3.weight"].T + v[f"{b}mlp.w3.bias"]
        else:
            y = F.gelu(y @ v[f"{b}mlp.fc1.weight"].T + v[f"{b}mlp.fc1.bias"])
            y = y @ v[f"{b}mlp.fc2.weight"].T + v[f"{b}mlp.fc2.bias"]
        return x + v[f"{b}ls2.gamma"] * y

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.s.heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B, H, L, D / H]
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if valid is not None:
            logits = logits.masked_fill(~valid[:, None, None], float("-inf"))
        return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def _flax_block(
        self, p: dict[str, Tensor], x: Tensor, b: str, swiglu: bool, values: bool = False, valid: Tensor | None = None
    ) -> Tensor:
        a = f"{b}MultiHeadDotProductAttention_0/"
        y = self._norm(p, x, f"{b}LayerNorm_0/scale", f"{b}LayerNorm_0/bias", 1e-6)
        q, k, v = (
            (torch.einsum("bld,dhe->blhe", y, p[f"{a}{n}/kernel"]) + p[f"{a}{n}/bias"]).flatten(2)
            for n in ("query", "key", "value")
        )
        y = v if values else self._attend(q, k, v, valid)
        x = (
            x
            + torch.einsum("blhe,hed->bld", y.unflatten(-1, (self.s.heads, -1)), p[f"{a}out/kernel"])
            + p[f"{a}out/bias"]
        )
        y = self._norm(p, x, f"{b}LayerNorm_1/scale", f"{b}LayerNorm_1/bias", 1e-6)
        ffn = b + ("FFNSwiGluFused_0/" if swiglu else "MlpBlock_0/")

        def dense(i: int, y: Tensor) -> Tensor:
            return y @ p[f"{ffn}Dense_{i}/kernel"] + p[f"{ffn}Dense_{i}/bias"]

        if swiglu:
            return x + dense(2, F.silu(dense(0, y)) * dense(1, y))
        y = F.relu(dense(0, y)) if valid is not None else F.gelu(dense(0, y), approximate="tanh")
        if valid is not None:
            y = y * valid[..., None]
        return x + dense(1, y)

    def text(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Embeddings `[B, D]` of token ids `[B, L]`."""
        t, s = self.t, self.s
        half = s.width // 2
        rates = torch.exp(-torch.arange(half) * (np.log(10_000.0) / (half - 1)))
        angles = torch.arange(ids.shape[1])[:, None] * rates
        table = t["token_emb/emb_var" if self.jax else "token_embedding.weight"]
        x = table[ids] * s.width**0.5 + torch.cat([angles.sin(), angles.cos()], dim=1)
        x = x.float()
        for i in range(s.text_layers):
            x = self._flax_block(t, x, f"transformer/encoderblock_{i}/", False, valid=valid) if self.jax else (
                self._torch_text_block(x, f"transformer.resblocks.{i}.", valid)
            )  # fmt: skip
        names = (
            ("text_encoder_norm/scale", "text_encoder_norm/bias") if self.jax else ("ln_final.weight", "ln_final.bias")
        )
        x = self._norm(t, x, *names, 1e-6 if self.jax else 1e-5) * valid[..., None]
        return x.sum(1) / (valid.sum(1, keepdim=True) + 1e-8)

    def _torch_text_block(self, x: Tensor, b: str, valid: Tensor) -> Tensor:
        t = self.t
        y = self._norm(t, x, f"{b}ln_1.weight", f"{b}ln_1.bias", 1e-5)
        q, k, v = (y @ t[f"{b}attn.in_proj_weight"].T + t[f"{b}attn.in_proj_bias"]).chunk(3, dim=-1)
        x = x + self._attend(q, k, v, valid) @ t[f"{b}attn.out_proj.weight"].T + t[f"{b}attn.out_proj.bias"]
        y = self._norm(t, x, f"{b}ln_2.weight", f"{b}ln_2.bias", 1e-5)
        y = F.relu(y @ t[f"{b}mlp.c_fc.weight"].T + t[f"{b}mlp.c_fc.bias"]) * valid[..., None]
        return x + (y @ t[f"{b}mlp.c_proj.weight"].T + t[f"{b}mlp.c_proj.bias"]) * valid[..., None]
