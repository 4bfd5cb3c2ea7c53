"""From a picture to the tensor that the image tower reads."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.errors import UserError, unknown
from distill.pixels import upright_rgb

FITS = ("stretch", "crop", "aspect")


def preprocess(image: Image.Image, size: int, patch: int, fit: str = "stretch") -> Tensor:
    """`image` resized (bilinear, antialiased) -> float32 `[3, H, W]` in [0, 1].

    It is first made upright RGB, as the loader makes it for training: turned as EXIF says, transparent pixels on white.
    `fit`: "stretch" to size x size (the paper's demonstration); "crop": shorter side to `size`, then the centre square;
    "aspect": shorter side to `size`, the longer one to the nearest multiple of the patch that keeps the aspect ratio.
    Raises `UserError` when `size` is not a positive multiple of `patch`.
    """
    if fit not in FITS:
        raise unknown("fit", fit, FITS)
    if size < patch or size % patch:
        near = sorted({max(size // patch, 1) * patch, (max(size, 0) // patch + 1) * patch})
        options = " or ".join(map(str, near))
        raise UserError(f"Image size {size} is not a multiple of the patch size {patch}: use {options}.")
    image = upright_rgb(image)
    scale = size / min(image.size)
    if fit == "crop":
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = _resize(image, width, height).crop((left, top, left + size, top + size))
    elif fit == "aspect":
        width, height = (max(round(side * scale / patch) * patch, size) for side in image.size)
        image = _resize(image, width, height)
    else:
        image = _resize(image, size, size)
    pixels = torch.from_numpy(np.array(image))  # uint8 [H, W, 3]
    return pixels.permute(2, 0, 1).float() / 255


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
