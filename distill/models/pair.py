"""An image tower and a text tower that meet in one space."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from distill.errors import UserError, unknown
from distill.models.preprocess import preprocess
from distill.models.text import TextTower
from distill.models.tokenizers import Tokenizer, load_tokenizer
from distill.models.tokenizers.base import check_list
from distill.models.vision import VisionTower

TOWERS = ("vision", "text")


class ImageTextModel(nn.Module):
    """What is trained, saved, loaded and evaluated: both towers, the tokenizer and the contrastive temperature.

    Training calls `model.image(...)` and `model.text(...)`; the `encode_*` methods are for use, without gradients.
    Embeddings are not L2-normalised. `image_size` (pixels) is what `preprocess` resizes to unless told otherwise.
    """

    def __init__(
        self,
        image: VisionTower,
        text: TextTower,
        tokenizer: Tokenizer,
        temperature: float = 0.07,
        image_size: int | None = None,
    ):
        super().__init__()
        if image.width != text.width:
            raise UserError(f"Image width {image.width} and text width {text.width} differ: they share one space.")
        if tokenizer.vocabulary > text.vocabulary:
            tokens = tokenizer.vocabulary
            raise UserError(
                f"The tokenizer has {tokens} tokens, the text tower embeds only {text.vocabulary}: make them equal."
            )
        self.image, self.text, self.tokenizer = image, text, tokenizer
        self.image_size = image_size or image.position_grid * image.patch
        self.log_temperature = nn.Parameter(torch.tensor([math.log(temperature)]))  # [1]: scalars cannot be sharded
        self.frozen: tuple[str, ...] = ()

    @property
    def temperature(self) -> Tensor:
        """Scalar: contrastive logits are cosines divided by it. Differentiable."""
        return self.log_temperature.squeeze().exp()

    @property
    def device(self) -> torch.device:
        return self.log_temperature.device

    @torch.no_grad()
    def encode_image(self, images: Tensor, values: bool = False) -> tuple[Tensor, Tensor]:
        """Float `[B, 3, H, W]` in [0, 1] -> CLS tokens `[B, C, D]` and patches `[B, rows, columns, D]`.

        `values`: patches by the value path (zero-shot segmentation). Raises `UserError` when a side is not a multiple
        of the patch size.
        """
        grid = self.image.grid(*images.shape[-2:])
        cls, patches = self.image(images.to(self.device), values=values)
        return cls, patches.unflatten(1, grid)

    @torch.no_grad()
    def encode_dense(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CLS `[B, C, D]`, final and value-path patches `[B, rows, columns, D]`: both of `encode_image` in one pass."""
        grid = self.image.grid(*images.shape[-2:])
        cls, final, values = self.image.dense(images.to(self.device))
        return cls, final.unflatten(1, grid), values.unflatten(1, grid)

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Texts -> `[B, D]`. Longer ones than the tower's context are cut.

        Raises `UserError` for an empty text, and for one alone, without its list.
        """
        check_list(texts)
        ids, valid, _ = self.tokenizer.encode(texts, self.text.context)
        return self.text(torch.from_numpy(ids).to(self.device), torch.from_numpy(valid).to(self.device))

    def preprocess(self, image: Image.Image, size: int | None = None, fit: str = "stretch") -> Tensor:
        """A PIL image -> float32 `[3, H, W]` in [0, 1]; `size` in pixels, `fit` one of stretch, crop, aspect."""
        return preprocess(image, size or self.image_size, self.image.patch, fit)

    def freeze(self, towers: Iterable[str]) -> None:
        """Stops training the named towers ("vision", "text"): no gradients, always in evaluation mode."""
        names = set(towers)
        for name in names - set(TOWERS):
            raise unknown("tower", name, TOWERS)
        self.frozen = tuple(name for name in TOWERS if name in names)
        for name in self.frozen:
            self.tower(name).requires_grad_(False).eval()

    def tower(self, name: str) -> VisionTower | TextTower:
        """The tower that recipes call "vision" or "text"."""
        return self.image if name == "vision" else self.text

    def train(self, mode: bool = True) -> ImageTextModel:
        super().train(mode)
        for name in self.frozen:
            self.tower(name).eval()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Also takes the temperature as a scalar, as it once was."""
        name = f"{prefix}log_temperature"
        if name in state_dict and state_dict[name].ndim == 0:
            state_dict[name] = state_dict[name][None]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def spec(self) -> dict[str, Any]:
        """Everything but the weights, JSON-able: `from_spec(model.spec())` has the same weight names and shapes."""
        return {
            "vision": self.image.config(),
            "text": self.text.config(),
            "tokenizer": self.tokenizer.state(),
            "image_size": self.image_size,
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> ImageTextModel:
        """A freshly initialised model of this shape; load its weights with `load_state_dict`."""
        return cls(
            VisionTower.from_config(spec["vision"]),
            TextTower.from_config(spec["text"]),
            load_tokenizer(spec["tokenizer"]),
            image_size=spec["image_size"],
        )
