"""A smaller model out of a larger one: blocks, heads and channels of the teacher, spread evenly (arXiv 2311.18823).

Every weight of the student is a slice of the teacher's, and the slices fit each other:
- one choice of residual channels serves both towers, every block, embedding and norm, so that what one block writes
  the next one reads, and the CLS tokens stay comparable with the texts;
- an attention head comes from one teacher head, whole where the heads are equally wide, with the same channels for its
  queries, keys and values;
- the same hidden channels leave a feed-forward layer that entered it.

Nothing is rescaled (the paper does not either), but for token embeddings, which the text tower multiplies by the root
of its width: without it, a narrower tower would hear its words less than its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.models.arch import Arch
from distill.models.text import TextTower
from distill.models.vision import VisionTower
from students.fitting import evenly_spaced

BLOCKS = "blocks"
# What each axis of a weight counts, by the weight's name; an empty word leaves the axis as it is.
IMAGE_AXES = {
    "embed.proj.weight": ("width", "", "", ""),
    "embed.proj.bias": ("width",),
    "embed.mask_token": ("width",),
    "embed.positions": ("", "", "width"),
    "trunk.cls_token": ("", "", "width"),
    "trunk.reg_token": ("", "", "width"),
    "trunk.norm.weight": ("width",),
    "trunk.norm.bias": ("width",),
}
TEXT_AXES = {"embedding.weight": ("", "width"), "norm.weight": ("width",), "norm.bias": ("width",)}
BLOCK_AXES = {
    "norm1.weight": ("width",),
    "norm1.bias": ("width",),
    "attn.qkv.weight": ("qkv", "width"),
    "attn.qkv.bias": ("qkv",),
    "attn.proj.weight": ("width", "heads"),
    "attn.proj.bias": ("width",),
    "norm2.weight": ("width",),
    "norm2.bias": ("width",),
    "mlp.fc1.weight": ("hidden", "width"),
    "mlp.fc1.bias": ("hidden",),
    "mlp.fc1_g.weight": ("hidden", "width"),
    "mlp.fc1_g.bias": ("hidden",),
    "mlp.fc1_x.weight": ("hidden", "width"),
    "mlp.fc1_x.bias": ("hidden",),
    "mlp.fc2.weight": ("width", "hidden"),
    "mlp.fc2.bias": ("width",),
}


def channels(width: int, chosen: int) -> list[int]:
    """Residual channels, evenly spaced in each half.

    The halves of the text tower's fixed positions are sines and cosines of the same geometric wavelengths, so that
    this choice of the teacher's channels meets the student's own positions.
    """
    half = evenly_spaced(width // 2, chosen // 2)
    return half + [width // 2 + channel for channel in half]


def head_channels(heads: int, width: int, chosen_heads: int, chosen_width: int) -> list[int]:
    """Channels inside the attention, head by head: `chosen_heads` of `heads`, of each `chosen_width` of its `width`."""
    inside = evenly_spaced(width, chosen_width)
    return [head * width + channel for head in evenly_spaced(heads, chosen_heads) for channel in inside]


@dataclass(frozen=True)
class Selection:
    """The indices kept along each kind of axis."""

    axes: dict[str, list[int]]

    @classmethod
    def between(cls, teacher: Arch, student: Arch, hidden: tuple[int, int]) -> Selection:
        """`hidden`: feed-forward channels of the teacher's and the student's blocks (image and text differ)."""
        wide, narrow = teacher.width // teacher.heads, student.width // student.heads
        attention = head_channels(teacher.heads, wide, student.heads, narrow)
        parts = (0, teacher.width, 2 * teacher.width)  # queries, keys, values
        return cls(
            {
                "width": channels(teacher.width, student.width),
                "heads": attention,
                "qkv": [part + channel for part in parts for channel in attention],
                "hidden": evenly_spaced(*hidden),
            }
        )

    def of(self, weight: Tensor, axes: Sequence[str]) -> Tensor:
        """The part of `weight` that is kept; a copy."""
        for axis, kind in enumerate(axes):
            if kind:
                weight = weight.index_select(axis, torch.tensor(self.axes[kind], device=weight.device))
        return weight


def select_image(teacher: VisionTower, student: VisionTower, layers: Sequence[int]) -> dict[str, Tensor]:
    """The student's weights out of the teacher's blocks `layers`, under the student's names.

    The student must be a part of the teacher: see `students.fitting.check_selection`.
    """
    selection = Selection.between(teacher.arch, student.arch, (teacher.arch.mlp, student.arch.mlp))
    return _selected(teacher.state_dict(), IMAGE_AXES, f"trunk.{BLOCKS}.", selection, layers)


def select_text(teacher: TextTower, student: TextTower) -> dict[str, Tensor]:
    """The student's text weights, of evenly spaced layers. It must be a part of the teacher, as in `select_image`."""
    selection = Selection.between(teacher.arch, student.arch, (teacher.arch.text_mlp, student.arch.text_mlp))
    layers = evenly_spaced(teacher.layers, student.layers)
    weights = _selected(teacher.state_dict(), TEXT_AXES, f"{BLOCKS}.", selection, layers)
    return weights | {"embedding.weight": weights["embedding.weight"] * (teacher.width / student.width) ** 0.5}


def _selected(
    source: dict[str, Tensor],
    axes: dict[str, tuple[str, ...]],
    prefix: str,
    selection: Selection,
    layers: Sequence[int],
) -> dict[str, Tensor]:
    kept = {name: selection.of(source[name], kinds) for name, kinds in axes.items() if name in source}
    for target, layer in enumerate(layers):
        for name, kinds in BLOCK_AXES.items():
            if f"{prefix}{layer}.{name}" in source:
                kept[f"{prefix}{target}.{name}"] = selection.of(source[f"{prefix}{layer}.{name}"], kinds)
    return kept
