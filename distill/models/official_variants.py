"""Which TIPS or TIPSv2 model a set of arrays is: layout, architecture and released variant, from names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from distill.models.arch import Arch
from distill.models.text import TextTower
from distill.models.vision import VisionTower

# The arrays do not always say how many heads there are; the family has one number for each width.
SIZES = {384: ("S", 6), 768: ("B", 12), 1024: ("L", 16), 1152: ("So400m", 16), 1536: ("g", 24)}
HEAD_CHANNELS = 64  # of a tower of another width
TEXT_EPS = {"torch": 1e-5, "jax": 1e-6}
GELU = {"torch": "erf", "jax": "tanh"}


_GENERATIONS = {16: "TIPS", 32: "TIPSv2"}  # by the side of the position grid
_DEPTHS = {"S": 12, "B": 12, "L": 24, "So400m": 27, "g": 40}


class Layout(NamedTuple):
    """What kind of file an npz is."""

    tower: str  # vision or text
    layout: str  # torch or jax


_MARKS = {
    "patch_embed.proj.weight": Layout("vision", "torch"),
    "encoder/ToTokenSequence_0/embedding/kernel": Layout("vision", "jax"),
    "token_embedding.weight": Layout("text", "torch"),
    "token_emb/emb_var": Layout("text", "jax"),
}
Shapes = Mapping[str, tuple[int, ...]]


def recognise(shapes: Shapes) -> Layout | None:
    """The kind of file that holds arrays of these names, None for something else."""
    return next((layout for name, layout in _MARKS.items() if name in shapes), None)


def vision_tower(shapes: Shapes, layout: str, heads: int | None = None) -> VisionTower:
    """The tower, on the meta device, whose weights these arrays would be. KeyError when an array it goes by is missing.

    The variant follows from shapes alone: width, depth, feed-forward layer and position grid. `heads`: what another
    file says of a PyTorch tower, whose arrays do not say it (None: the family's number for the width).
    """
    if layout == "torch":
        width, _, patch, _ = shapes["patch_embed.proj.weight"]
        grid = round((shapes["pos_embed"][1] - 1) ** 0.5)
        swiglu = "blocks.0.mlp.w3.weight" in shapes
        mlp = shapes["blocks.0.mlp.w3.weight"][1] if swiglu else shapes["blocks.0.mlp.fc1.weight"][0]
        depth, cls = _numbered(shapes, "blocks."), 1 + ("register_tokens" in shapes)
        heads = heads or _heads(width)
    else:
        root, block = "encoder/ToTokenSequence_0", "encoder/transformer/encoderblock_0"
        patch, _, _, width = shapes[f"{root}/embedding/kernel"]
        grid, cls = shapes[f"{root}/posembed_input"][1], shapes[f"{root}/cls"][1]
        swiglu = f"{block}/FFNSwiGluFused_0/Dense_0/kernel" in shapes
        mlp = shapes[f"{block}/{'FFNSwiGluFused_0' if swiglu else 'MlpBlock_0'}/Dense_0/kernel"][1]
        heads = shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][1]
        depth = _numbered(shapes, "encoder/transformer/encoderblock_")
    arch = Arch(size_of(width), patch, width, depth, heads, mlp, "swiglu" if swiglu else "gelu", 0, 0)
    with torch.device("meta"):
        return VisionTower(arch, cls_tokens=cls, position_grid=grid, gelu=GELU[layout], pad=True)


def text_tower(shapes: Shapes, layout: str, heads: int | None = None) -> TextTower:
    """As `vision_tower`, for a text file."""
    if layout == "torch":
        vocabulary, width = shapes["token_embedding.weight"]
        mlp = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
        layers, heads = _numbered(shapes, "transformer.resblocks."), heads or _heads(width)
    else:
        vocabulary, width = shapes["token_emb/emb_var"]
        mlp = shapes["transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"][1]
        heads = shapes["transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"][1]
        layers = _numbered(shapes, "transformer/encoderblock_")
    arch = Arch(size_of(width), 14, width, layers, heads, mlp, "gelu", layers, mlp)
    with torch.device("meta"):
        return TextTower(arch, vocabulary, norm_eps=TEXT_EPS[layout])


def timm_tower(trunk: Any) -> VisionTower:
    """As `vision_tower`, for a TIPSv2 model of timm."""
    block, width = trunk.blocks[0], trunk.embed_dim
    swiglu = block.mlp.fc1.out_features == 2 * block.mlp.fc2.in_features
    arch = Arch(size_of(width), 14, width, len(trunk.blocks), block.attn.num_heads, block.mlp.fc2.in_features,
                "swiglu" if swiglu else "gelu", 0, 0)  # fmt: skip
    with torch.device("meta"):
        return VisionTower(arch, cls_tokens=1 + trunk.num_reg_tokens, position_grid=trunk.patch_embed.grid_size[0],
                           gelu="erf", pad=True)  # fmt: skip


def size_of(width: int) -> str:
    """The family's name of a width, or `width-N`."""
    return SIZES[width][0] if width in SIZES else f"width-{width}"


def variant(arch: Arch, position_grid: int) -> str | None:
    """The released model of this shape, such as "TIPSv2 L/14"; None when there is none."""
    released = arch.depth == _DEPTHS.get(arch.size) and (arch.ffn == "swiglu") == (arch.size == "g")
    if not released or not released_positions(arch.patch, position_grid) or (arch.size, position_grid) == ("S", 32):
        return None
    return f"{_GENERATIONS[position_grid]} {arch}"


def released_positions(patch: int, position_grid: int) -> bool:
    """Whether released models have such patches and positions."""
    return patch == 14 and position_grid in _GENERATIONS


def _heads(width: int) -> int:
    return SIZES[width][1] if width in SIZES else max(width // HEAD_CHANNELS, 1)


def _numbered(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow `prefix` in the names."""
    ends = {name.removeprefix(prefix).replace("/", ".").partition(".")[0] for name in shapes if name.startswith(prefix)}
    return len(ends)
