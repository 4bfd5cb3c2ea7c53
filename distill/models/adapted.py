"""Other people's encoders in the shape of ours: what evaluation, teachers and export ask of any model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.preprocess import preprocess
from distill.models.tokenizers.base import Tokenizer, check_list
from distill.models.vision import ImageOutput, check_images, nearest_sizes


class AdaptedTower(nn.Module):
    """Base of foreign image towers. Input is in [0, 1]: normalisation happens here, with the model's own numbers.

    A subclass sets the attributes below and gives `tokens` and, where the last block allows it, `value_tokens`; if that
    depends on the block, `check_values` too.
    """

    patch: int
    width: int  # channels of CLS and patches, both in the space of the text tower where there is one
    depth: int
    cls_tokens: int
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, mask: Tensor | None = None, values: bool = False) -> ImageOutput:
        """`images [B, 3, H, W]` in [0, 1] -> CLS `[B, C, D]` and patches `[B, N, D]`, as `VisionTower.forward`.

        Raises `UserError` for a mask (a foreign tower has no mask token), for sizes it cannot take, for pixels that are
        whole numbers, and for `values` where the last block has no value path.
        """
        if mask is not None:
            raise UserError("This model has no mask token: only towers of ours see masked images.")
        if values:
            cls, _, patches = self.dense(images)
            return ImageOutput(cls, patches)
        return self.tokens(self.normalised(images))

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CLS `[B, C, D]`, final patches and value-path patches, each `[B, N, D]`."""
        return self.value_tokens(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        self.grid(*images.shape[-2:])
        check_images(images)
        return (images - self.mean) / self.std

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size in pixels; `UserError` when it is not a whole number."""
        if height % self.patch or width % self.patch or not (height and width):
            near = " or ".join(f"{h}x{w}" for h, w in nearest_sizes(height, width, self.patch))
            raise UserError(
                f"Image size {height}x{width} is not a multiple of the patch size {self.patch}: resize it to {near}."
            )
        return height // self.patch, width // self.patch

    def tokens(self, x: Tensor) -> ImageOutput:
        """CLS and final patches of normalised images."""
        raise NotImplementedError

    def value_tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CLS, final patches and value-path patches of normalised images."""
        raise NotImplementedError

    def check_values(self) -> None:
        """Raises `UserError` where the last block has no value path: nothing need be encoded to know."""

    def layers(self, images: Tensor, indices: Sequence[int]) -> list[ImageOutput]:
        """Outputs of the blocks `indices` (from 0), the final norm applied to each, in the order asked for.

        Raises `UserError` for an index that is no block.
        """
        raise NotImplementedError

    def check_indices(self, indices: Sequence[int]) -> None:
        for index in indices:
            if not 0 <= index < self.depth:
                raise UserError(f"There is no block {index}. Allowed: 0 to {self.depth - 1}.")


class AdaptedText(nn.Module):
    """Base of foreign text towers: `forward(ids, valid)` as `TextTower`, `[B, L]` -> `[B, D]`."""

    width: int
    context: int
    vocabulary: int


class AdaptedModel(nn.Module):
    """An image tower, and a text tower and tokenizer where the source has both: the uses of `ImageTextModel`.

    `encode_text` is None when texts cannot be encoded, so that what compares images with texts can refuse at once.
    """

    def __init__(
        self,
        image: nn.Module,
        image_size: int,
        text: nn.Module | None = None,
        tokenizer: Tokenizer | None = None,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.image: Any = image
        self.text: Any = text
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=False)

    @property
    def temperature(self) -> Tensor:
        """Scalar: contrastive logits are cosines divided by it."""
        return self.log_temperature.exp()

    @property
    def device(self) -> torch.device:
        return self.log_temperature.device

    @torch.no_grad()
    def encode_image(self, images: Tensor, values: bool = False) -> tuple[Tensor, Tensor]:
        """Float `[B, 3, H, W]` in [0, 1] -> CLS tokens `[B, C, D]` and patches `[B, rows, columns, D]`."""
        grid = self.image.grid(*images.shape[-2:])
        cls, patches = self.image(images.to(self.device), values=values)
        return cls, patches.unflatten(1, grid)

    @torch.no_grad()
    def encode_dense(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CLS `[B, C, D]`, final and value-path patches `[B, rows, columns, D]`."""
        grid = self.image.grid(*images.shape[-2:])
        cls, final, values = self.image.dense(images.to(self.device))
        return cls, final.unflatten(1, grid), values.unflatten(1, grid)

    @property
    def encode_text(self) -> Callable[[list[str]], Tensor] | None:
        """`list[str] -> [B, D]`, or None when the source has no text tower or no tokenizer."""
        return None if self.text is None or self.tokenizer is None else self._encode_text

    @torch.no_grad()
    def _encode_text(self, texts: list[str]) -> Tensor:
        assert self.tokenizer is not None
        check_list(texts)
        ids, valid, _ = self.tokenizer.encode(texts, self.text.context)
        return self.text(torch.from_numpy(ids).to(self.device), torch.from_numpy(valid).to(self.device))

    def preprocess(self, image: Image.Image, size: int | None = None, fit: str = "stretch") -> Tensor:
        """A PIL image -> float32 `[3, H, W]` in [0, 1]; `size` in pixels, `fit` one of stretch, crop, aspect."""
        return preprocess(image, size or self.image_size, self.image.patch, fit)
