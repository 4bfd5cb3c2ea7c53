"""A stub model whose features are known, and datasets made of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from distill.evals.datasets.base import CAPTIONS, DEPTH, LABELS, MASKS, NORMALS, TRAIN, EvalDataset, Item
from distill.models.arch import Arch
from distill.models.pair import ImageTextModel
from distill.models.text import TextTower
from distill.models.tokenizers.words import WordsTokenizer
from distill.models.vision import ImageOutput, VisionTower

NAMES = ["cat", "dog", "tree", "sky", "road"]


class StubTower:
    """Four blocks: that at `index` answers with the final tokens times (index + 1) / 4."""

    depth = 4

    def __init__(self, model: StubModel, patch: int):
        self.model, self.patch = model, patch

    @property
    def width(self) -> int:
        return self.model.table.shape[1]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.patch, width // self.patch

    def layers(self, images: Tensor, indices: Sequence[int]) -> list[ImageOutput]:
        self.model.deep.append((*images.shape[:1], *indices))
        cls, patches = self.model.tokens(images, values=False)
        shares = [(at + 1) / self.depth for at in indices]
        return [ImageOutput(cls * share, patches.flatten(1, 2) * share) for share in shares]


class StubModel(nn.Module):
    """Reads a class off the red channel of each patch (10 levels a class) and answers with a row of `table`.

    Texts are answered with the row of the class they mention. The value path answers `value_shift` classes later.
    CLS-1 is the mean of the patch features, CLS-2 the same with the sign of every other entry turned.
    With `mixing` `[3, D]`, patch features are the patch's mean colour times `mixing` instead (no two scores are equal).
    """

    def __init__(self, table: Tensor, patch: int = 4, value_shift: int = 0, mixing: Tensor | None = None):
        super().__init__()
        self.mixing = mixing
        self.register_buffer("table", table)
        self.image = StubTower(self, patch)
        self.value_shift, self.names = value_shift, NAMES
        self.seen: list[tuple[int, ...]] = []  # shapes of the images encoded
        self.deep: list[tuple[int, ...]] = []  # number of images, and the blocks asked for
        self.texts: list[str] = []

    def classes(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> class of each patch `[B, h, w]`."""
        p = self.image.patch
        assert images.dtype == torch.float32
        assert images.shape[2] % p == 0 and images.shape[3] % p == 0
        mean = nn.functional.avg_pool2d(images[:, :1], p)[:, 0]  # [B, h, w]
        return (mean * 255 / 10).round().long().clamp(0, len(self.table) - 1)

    def encode_image(self, images: Tensor, values: bool = False) -> tuple[Tensor, Tensor]:
        self.seen.append(tuple(images.shape))
        return self.tokens(images, values)

    def tokens(self, images: Tensor, values: bool) -> tuple[Tensor, Tensor]:
        found = self.classes(images)
        if values:
            found = (found + self.value_shift) % len(self.table)
        patches = self.table[found]  # [B, h, w, D]
        if self.mixing is not None:
            colour = nn.functional.avg_pool2d(images, self.image.patch).permute(0, 2, 3, 1) - 0.1
            patches = colour @ (self.mixing.flip(0) if values else self.mixing)
        cls = patches.mean((1, 2))
        turned = cls * torch.tensor([1.0, -1.0]).repeat(cls.shape[1])[: cls.shape[1]]
        return torch.stack([cls, turned], 1), patches

    def encode_text(self, texts: list[str]) -> Tensor:
        self.texts += texts
        return torch.stack([self.table[next(i for i, n in enumerate(self.names) if n in text)] for text in texts])


@pytest.fixture
def stub() -> Callable[..., StubModel]:
    return StubModel


@pytest.fixture
def names() -> list[str]:
    return list(NAMES)


def picture(classes: np.ndarray, cell: int = 1) -> np.ndarray:
    """Classes `[h, w]` -> uint8 `[h * cell, w * cell, 3]` that StubModel reads back."""
    red = np.kron(classes, np.ones((cell, cell), dtype=np.int64)) * 10
    return np.stack([red, np.zeros_like(red), np.zeros_like(red)], -1).astype(np.uint8)


@pytest.fixture
def paint() -> Callable[..., np.ndarray]:
    return picture


def array_dataset(
    images: list[np.ndarray],
    masks: list[np.ndarray] | None = None,
    captions: list[dict[str, list[str]]] | None = None,
    labels: list[int | None] | None = None,
    train: EvalDataset | None = None,
    depth: list[np.ndarray] | None = None,
    normals: list[np.ndarray] | None = None,
    domains: list[str] | None = None,
    also: list[tuple[int, ...]] | None = None,
    **more: object,
) -> EvalDataset:
    """An EvalDataset over arrays; a list that is left out is not there."""
    has = {MASKS: masks, CAPTIONS: captions, LABELS: labels, TRAIN: train, DEPTH: depth, NORMALS: normals}

    def item(index: int) -> Item:
        return Item(
            f"image {index}",
            image=lambda: Image.fromarray(images[index]),
            mask=None if masks is None else (lambda: masks[index]),
            captions=None if captions is None else captions[index],
            label=None if labels is None else (lambda: labels[index]),
            depth=None if depth is None else (lambda: depth[index]),
            normals=None if normals is None else (lambda: normals[index]),
            domain=None if domains is None else domains[index],
            also=() if also is None else also[index],
        )

    fields = sorted({name for group in captions or [] for name in group})
    defaults = {"name": "arrays", "size": 16, "class_names": list(NAMES), "caption_fields": fields, "prompts": "plain"}
    return EvalDataset(
        item=item,
        length=len(images),
        has=frozenset(name for name, there in has.items() if there is not None),
        open_train=None if train is None else (lambda: train),
        **{**defaults, **more},  # type: ignore[arg-type]
    )


@pytest.fixture
def arrays() -> Callable[..., EvalDataset]:
    return array_dataset


@pytest.fixture
def tiny_model() -> ImageTextModel:
    """A real, untrained model: patch 16, width 16, two blocks."""
    torch.manual_seed(0)
    arch = Arch("small", patch=16, width=16, depth=2, heads=2, mlp=24, ffn="gelu", text_layers=1, text_mlp=16)
    tokenizer = WordsTokenizer(["ball", "box", "tree", "sky", "a", "on"])
    image = VisionTower(arch, position_grid=4)
    return ImageTextModel(image, TextTower(arch, tokenizer.vocabulary, context=8), tokenizer, image_size=64).eval()
