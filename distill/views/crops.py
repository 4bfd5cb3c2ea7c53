"""Random resized crops and flips, the paper's only augmentations: drawn first, applied to pixels afterwards.

Drawing apart from applying lets a decoder see how much resolution the crops need, and lets stored targets be aligned to
a crop later. The distribution is torchvision's `RandomResizedCrop`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from distill.config.schema import ViewsConfig

ASPECT = (3 / 4, 4 / 3)  # range of width / height, drawn log-uniformly
TRIES = 10  # boxes tried before the central fallback


@dataclass(frozen=True)
class Crops:
    """Where each crop lies and whether it is mirrored. Row 0 is the global crop, rows 1..M the local ones."""

    size: tuple[int, int]  # (height, width) of the image the boxes were drawn for
    boxes: np.ndarray  # float64 [1 + M, 4]: left, top, right, bottom in pixels of `size`
    flips: np.ndarray  # bool [1 + M]
    global_size: int  # side of the global crop after resizing
    local_size: int  # side of a local crop after resizing

    def least_scale(self) -> float:
        """The smallest factor by which the image may be decoded smaller with no crop enlarged because of it, at most 1.

        A JPEG decoder that offers 1/8, 1/4 and 1/2 may take the smallest of them that is not below this.
        """
        sides = np.minimum(self.boxes[:, 2] - self.boxes[:, 0], self.boxes[:, 3] - self.boxes[:, 1])  # [1 + M]
        outputs = np.full(len(sides), self.local_size, dtype=np.float64)
        outputs[0] = self.global_size
        return float(min(1.0, (outputs / sides).max()))


def draw_crops(size: tuple[int, int], cfg: ViewsConfig, rng: np.random.Generator) -> Crops:
    """One global and `cfg.locals` local crops of an image of `size` = (height, width).

    Area share uniform in the scale range, aspect log-uniform in [3/4, 4/3], whole-pixel boxes; after ten tries that do
    not fit, the largest central box with an allowed aspect. Takes the same number of draws from `rng` for every image.
    """
    count = 1 + cfg.locals
    draws = rng.random((count, TRIES, 4)).tolist()
    scales = [cfg.global_scale] + [cfg.local_scale] * cfg.locals
    boxes = np.array([_box(size, scale, tries) for scale, tries in zip(scales, draws)], dtype=np.float64)
    return Crops(size, boxes, rng.random(count) < cfg.flip, cfg.global_size, cfg.local_size)


def _box(size: tuple[int, int], scale: list[float], tries: list[list[float]]) -> tuple[float, float, float, float]:
    """The first box that fits the image; each try holds four uniform numbers: area, aspect, left, top."""
    height, width = size
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for u_area, u_aspect, u_left, u_top in tries:
        area = height * width * (scale[0] + u_area * (scale[1] - scale[0]))
        aspect = math.exp(low + u_aspect * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = math.floor(u_left * (width - w + 1)), math.floor(u_top * (height - h + 1))
            return (left, top, left + w, top + h)
    return _central_box(height, width)


def apply_crops(image: np.ndarray, crops: Crops) -> tuple[np.ndarray, np.ndarray]:
    """Cuts and resizes `image`, uint8 `[H, W, 3]`, to `(global uint8 [3, G, G], local uint8 [M, 3, h, h])`.

    Bicubic with antialiasing, equal to Pillow's up to rounding and several times faster; pixels outside a box do not
    bleed into its crop. `image` may be a smaller decoding of the drawn-for size: boxes are scaled to it and rounded
    to its pixels. Raises ValueError when the image is not uint8 RGB.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"crops need a uint8 image [H, W, 3]; got {image.dtype} {list(image.shape)}")
    global_ = np.empty((3, crops.global_size, crops.global_size), np.uint8)
    local = np.empty((len(crops.boxes) - 1, 3, crops.local_size, crops.local_size), np.uint8)
    boxes = scaled_boxes(crops.boxes, crops.size, image.shape[:2])
    for box, flip, out in zip(boxes, crops.flips.tolist(), [global_, *local]):
        _cut(image, box, flip, out)
    return global_, local


def _cut(image: np.ndarray, box: list[int], flip: bool, out: np.ndarray) -> None:
    """Resizes `box` of `image`, uint8 `[H, W, 3]`, into `out`, uint8 `[3, S, S]`."""
    left, top, right, bottom = box
    part = torch.from_numpy(image[top:bottom, left:right].copy())[None]  # [1, h, w, 3]
    part = part.permute(0, 3, 1, 2)  # [1, 3, h, w], channels last in memory: the fast path for uint8
    resized = F.interpolate(part, size=out.shape[1:], mode="bicubic", antialias=True)[0].numpy()  # [3, S, S]
    out[:] = resized[:, :, ::-1] if flip else resized


def scaled_boxes(boxes: np.ndarray, size: tuple[int, int], to: tuple[int, ...]) -> list[list[int]]:
    """Boxes drawn for an image of `size` = (height, width) as whole pixels of a decoding of size `to`, none empty."""
    scale = np.array([to[1] / size[1], to[0] / size[0]] * 2)
    corner = np.minimum(np.rint(boxes[:, :2] * scale[:2]), [to[1] - 1, to[0] - 1])
    opposite = np.maximum(np.rint(boxes[:, 2:] * scale[2:]), corner + 1)
    return np.concatenate([corner, opposite], axis=1).astype(int).tolist()


def _central_box(height: int, width: int) -> tuple[float, float, float, float]:
    """The largest central box whose aspect is allowed: the whole image, or cut along its longer side."""
    if width / height < ASPECT[0]:
        w, h = width, min(height, round(width / ASPECT[0]))
    elif width / height > ASPECT[1]:
        w, h = min(width, round(height * ASPECT[1])), height
    else:
        w, h = width, height
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)
