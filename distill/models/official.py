"""The official TIPS and TIPSv2 weights by name: which of their arrays are which of our tensors, in both directions.

Two layouts are published as flat npz files, one file for the image tower and one for the text tower. `torch` has
DINOv2's names: LayerScale factors (here folded into the projections they scale), a position slot for the first CLS
token (added into the token; the position grid is for patches alone) and a "register", which is the second CLS token.
`jax` is the original, flax names joined by "/", with query, key and value apart and kernels as [in, out]. Image towers
also have the layout `timm`; Hugging Face repositories hold the `torch` arrays, each tower under a prefix.

A `Row` says how one group of arrays becomes one group of tensors. Reading, writing, recognising and checking all go
through the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distill.models.arch import Arch
from distill.models.text import TextTower
from distill.models.vision import VisionTower

Tensors = Sequence[Tensor]
Tower = VisionTower | TextTower

TEMPERATURE = {"torch": "temperature", "jax": "temperature_contrastive"}  # its name in a text file


class Row(NamedTuple):
    """Their arrays `theirs` are our tensors `ours`, by `read`, and back, by `write`."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[[Tensors], Tensors]
    write: Callable[[Tensors], Tensors]


def read_tower(arrays: Mapping[str, Tensor], rows: list[Row]) -> dict[str, Tensor]:
    """Their arrays, float32, as a state dict of our tower."""
    state: dict[str, Tensor] = {}
    for row in rows:
        state |= zip(row.ours, row.read([arrays[name] for name in row.theirs]))
    return state


def to_official(tower: Tower, layout: str = "torch") -> dict[str, Tensor]:
    """A tower of ours under their names, float32. Writing and reading it again gives the same tower, bit for bit,
    but for an image tower's mask token, which `jax` and `timm` have no place for: read again, it is zero.

    A text file also has the contrastive temperature, `TEMPERATURE[layout]`: it is the pair's, so the caller adds it.
    """
    state = tower.state_dict()
    arrays: dict[str, Tensor] = {}
    for row in rows_of(tower, layout):
        arrays |= zip(row.theirs, row.write([state[name] for name in row.ours]))
    return {name: value.contiguous() for name, value in arrays.items()}


def rows_of(tower: Tower, layout: str) -> list[Row]:
    """The rows of a tower of this shape in `layout`: torch, jax, or, for image towers, timm."""
    if isinstance(tower, VisionTower):
        return list({"torch": _torch_vision, "jax": _jax_vision, "timm": _timm_vision}[layout](tower))
    return list({"torch": _torch_text, "jax": _jax_text}[layout](tower))


# ------------------------------------------------------------------------------------------------ the rows


def _as_is(ours: str, theirs: str) -> Row:
    return Row((ours,), (theirs,), lambda t: t, lambda t: t)


def _shaped(ours: str, theirs: str, our_shape: tuple[int, ...], their_shape: tuple[int, ...]) -> Row:
    return Row((ours,), (theirs,), lambda t: [t[0].reshape(our_shape)], lambda t: [t[0].reshape(their_shape)])


def _norm(ours: str, theirs: str, weight: str = ".weight", bias: str = ".bias") -> list[Row]:
    return [_as_is(f"{ours}.weight", theirs + weight), _as_is(f"{ours}.bias", theirs + bias)]


def _scaled(ours: str, theirs: str, gamma: str) -> Row:
    """A projection and the LayerScale after it: gamma * (W x + b) = (gamma W) x + gamma b."""

    def read(t: Tensors) -> Tensors:
        weight, bias, scale = t
        return [weight * scale[:, None], bias * scale]

    names = (f"{ours}.weight", f"{ours}.bias")
    return Row(names, (f"{theirs}.weight", f"{theirs}.bias", gamma), read, lambda t: [*t, torch.ones_like(t[1])])


def _halves(ours: tuple[str, str], theirs: str) -> Row:
    """Two stacked matrices (or vectors) in one array."""
    return Row(ours, (theirs,), lambda t: t[0].chunk(2), lambda t: [torch.cat(list(t))])


def _torch_vision(tower: VisionTower) -> Iterator[Row]:
    width, grid = tower.width, tower.position_grid

    def read_positions(t: Tensors) -> Tensors:
        cls, table = t  # [1, 1, D], [1, 1 + G * G, D]
        return [cls + table[:, :1], table[0, 1:].reshape(grid, grid, width)]

    def write_positions(t: Tensors) -> Tensors:
        cls, positions = t
        return [cls, torch.cat([torch.zeros_like(cls), positions.reshape(1, grid * grid, width)], dim=1)]

    yield _shaped("embed.mask_token", "mask_token", (width,), (1, width))
    yield Row(("trunk.cls_token", "embed.positions"), ("cls_token", "pos_embed"), read_positions, write_positions)
    if tower.cls_tokens == 2:
        yield _as_is("trunk.reg_token", "register_tokens")
    yield from _dino_blocks(tower, "w12", "w3")


def _timm_vision(tower: VisionTower) -> Iterator[Row]:
    width, grid = tower.width, tower.position_grid
    yield Row(("embed.mask_token",), (), lambda t: [torch.zeros(width)], lambda t: [])
    yield _as_is("trunk.cls_token", "cls_token")  # with the position added already
    yield _shaped("embed.positions", "pos_embed", (grid, grid, width), (1, grid * grid, width))
    if tower.cls_tokens == 2:
        yield _as_is("trunk.reg_token", "reg_token")
    yield from _dino_blocks(tower, "fc1", "fc2")


def _dino_blocks(tower: VisionTower, up: str, down: str) -> Iterator[Row]:
    """Patch embedding, blocks and final norm under DINOv2's names; `up`, `down`: the layers of a SwiGLU."""
    yield from _norm("embed.proj", "patch_embed.proj")
    for i in range(tower.depth):
        ours, theirs = f"trunk.blocks.{i}", f"blocks.{i}"
        yield from _norm(f"{ours}.norm1", f"{theirs}.norm1")
        yield from _norm(f"{ours}.attn.qkv", f"{theirs}.attn.qkv")
        yield _scaled(f"{ours}.attn.proj", f"{theirs}.attn.proj", f"{theirs}.ls1.gamma")
        yield from _norm(f"{ours}.norm2", f"{theirs}.norm2")
        if tower.arch.ffn == "swiglu":
            for kind in ("weight", "bias"):
                yield _halves((f"{ours}.mlp.fc1_g.{kind}", f"{ours}.mlp.fc1_x.{kind}"), f"{theirs}.mlp.{up}.{kind}")
            yield _scaled(f"{ours}.mlp.fc2", f"{theirs}.mlp.{down}", f"{theirs}.ls2.gamma")
        else:
            yield from _norm(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1")
            yield _scaled(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2", f"{theirs}.ls2.gamma")
    yield from _norm("trunk.norm", "norm")


def _torch_text(tower: TextTower) -> Iterator[Row]:
    yield _as_is("embedding.weight", "token_embedding.weight")
    for i in range(tower.layers):
        ours, theirs = f"blocks.{i}", f"transformer.resblocks.{i}"
        yield from _norm(f"{ours}.norm1", f"{theirs}.ln_1")
        yield from _norm(f"{ours}.attn.qkv", f"{theirs}.attn.in_proj", weight="_weight", bias="_bias")
        yield from _norm(f"{ours}.attn.proj", f"{theirs}.attn.out_proj")
        yield from _norm(f"{ours}.norm2", f"{theirs}.ln_2")
        yield from _norm(f"{ours}.mlp.fc1", f"{theirs}.mlp.c_fc")
        yield from _norm(f"{ours}.mlp.fc2", f"{theirs}.mlp.c_proj")
    yield from _norm("norm", "ln_final")


def _dense(ours: str, theirs: str) -> list[Row]:
    kernel = Row((f"{ours}.weight",), (f"{theirs}/kernel",), lambda t: [t[0].T], lambda t: [t[0].T])
    return [kernel, _as_is(f"{ours}.bias", f"{theirs}/bias")]


def _jax_attention(ours: str, theirs: str, width: int, heads: int) -> Iterator[Row]:
    apart = [f"{theirs}/{name}" for name in ("query", "key", "value")]
    each = width // heads

    def read_kernels(t: Tensors) -> Tensors:  # three [D, H, D / H]
        return [torch.cat([kernel.reshape(width, width).T for kernel in t])]

    def write_kernels(t: Tensors) -> Tensors:
        return [part.T.reshape(width, heads, each) for part in t[0].chunk(3)]

    yield Row((f"{ours}.qkv.weight",), tuple(f"{name}/kernel" for name in apart), read_kernels, write_kernels)
    yield Row(
        (f"{ours}.qkv.bias",),
        tuple(f"{name}/bias" for name in apart),
        lambda t: [torch.cat([bias.reshape(width) for bias in t])],
        lambda t: [part.reshape(heads, each) for part in t[0].chunk(3)],
    )
    yield Row(
        (f"{ours}.proj.weight",),
        (f"{theirs}/out/kernel",),  # [H, D / H, D]
        lambda t: [t[0].reshape(width, width).T],
        lambda t: [t[0].T.reshape(heads, each, width)],
    )
    yield _as_is(f"{ours}.proj.bias", f"{theirs}/out/bias")


def _jax_block(ours: str, theirs: str, arch: Arch, swiglu: bool) -> Iterator[Row]:
    yield from _norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0", weight="/scale", bias="/bias")
    yield from _jax_attention(f"{ours}.attn", f"{theirs}/MultiHeadDotProductAttention_0", arch.width, arch.heads)
    yield from _norm(f"{ours}.norm2", f"{theirs}/LayerNorm_1", weight="/scale", bias="/bias")
    ffn = f"{theirs}/{'FFNSwiGluFused_0' if swiglu else 'MlpBlock_0'}"
    for i, name in enumerate(("fc1_g", "fc1_x", "fc2") if swiglu else ("fc1", "fc2")):
        yield from _dense(f"{ours}.mlp.{name}", f"{ffn}/Dense_{i}")


def _jax_vision(tower: VisionTower) -> Iterator[Row]:
    root, width, grid = "encoder/ToTokenSequence_0", tower.width, tower.position_grid
    yield Row(
        ("embed.proj.weight",),
        (f"{root}/embedding/kernel",),  # [P, P, 3, D]
        lambda t: [t[0].permute(3, 2, 0, 1)],
        lambda t: [t[0].permute(2, 3, 1, 0)],
    )
    yield _as_is("embed.proj.bias", f"{root}/embedding/bias")
    yield _shaped("embed.positions", f"{root}/posembed_input", (grid, grid, width), (1, grid, grid, width))
    cls = ("trunk.cls_token", "trunk.reg_token")[: tower.cls_tokens]
    yield Row(cls, (f"{root}/cls",), lambda t: t[0].split(1, dim=1), lambda t: [torch.cat(list(t), dim=1)])
    # their model is for use, not for training: it has no mask token, and ours starts at zero
    yield Row(("embed.mask_token",), (), lambda t: [torch.zeros(width)], lambda t: [])
    for i in range(tower.depth):
        block = f"encoder/transformer/encoderblock_{i}"
        yield from _jax_block(f"trunk.blocks.{i}", block, tower.arch, tower.arch.ffn == "swiglu")
    yield from _norm("trunk.norm", "encoder/encoder_norm", weight="/scale", bias="/bias")


def _jax_text(tower: TextTower) -> Iterator[Row]:
    yield _as_is("embedding.weight", "token_emb/emb_var")
    for i in range(tower.layers):
        yield from _jax_block(f"blocks.{i}", f"transformer/encoderblock_{i}", tower.arch, swiglu=False)
    yield from _norm("norm", "text_encoder_norm", weight="/scale", bias="/bias")
