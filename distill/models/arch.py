"""The shape of an image-text pair, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """Everything that fixes the towers' weight shapes, except vocabulary, CLS count and position grid.

    The text tower shares the image tower's width and head count: the contrastive space is the image's CLS token itself,
    without a projection (the paper, table 16). The table of sizes is in `students.architectures`.
    """

    size: str  # name of the size, for messages
    patch: int  # side of a patch in pixels
    width: int  # channels D of a token, image and text
    depth: int  # image blocks
    heads: int  # attention heads, image and text
    mlp: int  # hidden channels of an image block's feed-forward layer
    ffn: str  # "gelu": Linear-GELU-Linear; "swiglu": gated with SiLU, two up-projections
    text_layers: int
    text_mlp: int  # hidden channels of a text block's feed-forward layer (ReLU)

    @property
    def name(self) -> str:
        """The recipe's spelling, for example `B/14`."""
        return f"{self.size}/{self.patch}"

    def __str__(self) -> str:
        return self.name
