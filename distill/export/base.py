"""What every format offers, and the check that what was written is what was opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.errors import UserError
from distill.models.sources.base import OpenedModel
from distill.models.tokenizers import STATE, Tokenizer
from distill.models.tokenizers.hf import HfTokenizer
from distill.models.tokenizers.sentence_piece import SentencePieceTokenizer
from distill.models.vision import VisionTower

CLOSE = 1e-4  # of the largest difference, by the largest value of the original or 1
TEXTS = ["a red disc on a wall", "a blue square"]


@dataclass
class Reloaded:
    """An export, opened in its own ecosystem. `text` and `tokenizer` are None where the format carries none."""

    image: Callable[[Tensor], dict[str, Tensor]]  # [B, 3, H, W] -> cls [B, C, D], patches [B, N, D], perhaps values
    text: Callable[[Tensor, Tensor], Tensor] | None = None  # ids and valid, [B, L] each -> [B, D]
    tokenizer: Tokenizer | None = None


class Format(Protocol):
    """The functions of a format's module."""

    ANY_SIZE: bool  # whether other image sizes than that of the positions are taken, and give the original's outputs

    def check(self, opened: OpenedModel) -> None:
        """Raises UserError where the format cannot hold this model, or its packages are missing."""

    def write(self, opened: OpenedModel, folder: Path) -> None:
        """Writes the files into `folder`, which exists and is empty."""

    def reload(self, folder: Path) -> Reloaded:
        """Opens what `write` wrote, by the ecosystem's own loader."""

    def loading(self, opened: OpenedModel, name: str) -> tuple[str, list[str]]:
        """For the card: Python that loads the folder `name`, and what to know about the format."""


def native_size(image: VisionTower) -> int:
    """Pixels of either side of an image that has as many patches as there are positions."""
    return image.position_grid * image.patch


@torch.no_grad()
def compare(opened: OpenedModel, again: Reloaded, any_size: bool) -> float:
    """The largest difference between original and export, relative to the largest value (at least 1).

    Two batch sizes, and two image sizes where the format serves them. Raises UserError that names the largest
    difference when it is above `CLOSE` or not a number.
    """
    image = opened.model.image
    side = native_size(image)
    shapes = [(1, side, side)] + ([(2, side + image.patch, max(side - image.patch, image.patch))] if any_size else [])
    shapes += [] if any_size else [(2, side, side)]
    found: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in shapes:
        images = torch.rand(batch, 3, height, width, generator=generator)
        cls, patches, values = image.dense(images)
        original = {"cls": cls, "patches": patches, "values": values}
        for name, value in again.image(images).items():
            found[f"{name} at {height}x{width}"] = _difference(original[name], value)
    text, tokenizer = opened.model.text, opened.model.tokenizer
    if again.text is not None:
        ids, valid = _texts(text, tokenizer)
        for rows in (1, 2):
            found[f"text of {rows}"] = _difference(text(ids[:rows], valid[:rows]), again.text(ids[:rows], valid[:rows]))
    if again.tokenizer is not None:
        ours, theirs = (t.encode(TEXTS, text.context) for t in (tokenizer, again.tokenizer))
        found["token ids"] = float(abs(ours.ids - theirs.ids).max())
    worst = max(found, key=lambda name: found[name] if found[name] == found[name] else float("inf"))
    if not found[worst] <= CLOSE:
        raise UserError(
            f"The export differs from {opened.source}: {worst} by {found[worst]:.3g}, allowed {CLOSE:g}. "
            f"Nothing was kept; please report it with the versions of your packages."
        )
    return found[worst]


def _texts(text: Any, tokenizer: Tokenizer | None) -> tuple[Tensor, Tensor]:
    """Two texts as the tower reads them; without a tokenizer, arbitrary ids."""
    if tokenizer is not None:
        encoded = tokenizer.encode(TEXTS, text.context)
        return torch.from_numpy(encoded.ids), torch.from_numpy(encoded.valid)
    lengths = torch.tensor([min(5, text.context), min(3, text.context)])
    known = torch.arange(text.context)[None] < lengths[:, None]  # [2, L]
    ids = torch.arange(1, text.context + 1)[None].remainder(text.vocabulary) * known
    return ids, known


def _difference(original: Tensor, export: Tensor) -> float:
    if original.shape != export.shape:
        return float("inf")
    return float((original - export).abs().max() / original.abs().max().clamp(min=1))


def our_image(opened: OpenedModel, to: str) -> VisionTower:
    """The image tower, if it is of our own architecture; UserError otherwise."""
    image = opened.model.image
    if not isinstance(image, VisionTower):
        raise UserError(
            f"{opened.source} is a {type(image).__name__}, which cannot be exported to {to}. Allowed: models of our "
            f"own architecture, from run:, file:, tips:, hf: and TIPSv2 of timm:."
        )
    return image


def mask_token_lost(image: VisionTower) -> list[str]:
    """A note for the card of a layout that has no place for the mask token, where `image` has learned one."""
    if not bool(image.embed.mask_token.any()):
        return []
    return [
        "The learned mask token is not in these files, as their layout has none: masked views, and a student started "
        "from them, have one of zeros. `--to safetensors` keeps it."
    ]


def our_pair(opened: OpenedModel, to: str) -> None:
    """UserError unless both towers and the tokenizer are there and of our own architecture."""
    our_image(opened, to)
    if opened.model.text is None or opened.model.tokenizer is None:
        raise UserError(
            f"{opened.source} has no text tower with a tokenizer, which {to} needs. Allowed without one: --to timm, "
            f"tips or onnx."
        )


def save_tokenizer(tokenizer: Tokenizer | None, folder: Path) -> str | None:
    """Writes the tokenizer under its usual name, or its words and kind as JSON; returns the file's name."""
    if tokenizer is None:
        return None
    if isinstance(tokenizer, SentencePieceTokenizer):
        (folder / "tokenizer.model").write_bytes(tokenizer._model)
        return "tokenizer.model"
    if isinstance(tokenizer, HfTokenizer):
        (folder / "tokenizer.json").write_text(tokenizer.state()["content"], encoding="utf-8")
        return "tokenizer.json"
    (folder / STATE).write_text(json.dumps(tokenizer.state(), indent=1), encoding="utf-8")
    return STATE
