"""Crops of scaled decodings, against the plain way: decode in full, cut the box, resize with Pillow's bicubic filter.

Bounds, in grey levels of 255: without scaled decoding at most 2 apart, 0.4 on average. With it, each box is first
rounded to pixels of the decoding, so it moves by at most half of one, less than half a pixel of the crop; then at most
2 apart on average and 10 in 99 of 100 values.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image, ImageOps

from distill.bench import photos
from distill.config.schema import ViewsConfig
from distill.data.decode import Picture
from distill.data.sample import Sample
from distill.views.crops import Crops, apply_crops, draw_crops, scaled_boxes

VIEWS = ViewsConfig(global_size=64, local_size=28, locals=3)
LARGE, SMALL = (480, 640), (60, 80)
photo = lru_cache(photos.photo)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 92} if kind == "JPEG" else {}), **options)
    return out.getvalue()


def ours(data: bytes, decoder: str, seed: int) -> tuple[Crops, tuple[int, ...], list[np.ndarray]]:
    """The crops, the size they were cut from, and their pixels [3, S, S]."""
    picture = Picture(Sample("k", "s.tar", data), decoder)
    crops = draw_crops(picture.size, VIEWS, np.random.default_rng(seed))
    pixels = picture.decode(crops.least_scale())
    global_, local = apply_crops(pixels, crops)
    return crops, pixels.shape[:2], [global_, *local]


def plain(data: bytes, crops: Crops, boxes: np.ndarray) -> list[np.ndarray]:
    """The crops of `boxes`, in pixels of the whole image, made the plain way."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    sides = [crops.global_size] + [crops.local_size] * (len(boxes) - 1)
    cut = [
        np.asarray(image.crop(tuple(map(int, box))).resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        for box, side in zip(boxes, sides)
    ]
    return [pixels[:, :, ::-1] if flip else pixels for pixels, flip in zip(cut, crops.flips)]


def apart(found: list[np.ndarray], expected: list[np.ndarray]) -> np.ndarray:
    """All differences, flat."""
    return np.concatenate([np.abs(a.astype(int) - b).ravel() for a, b in zip(found, expected)])


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = image.getexif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif)


KINDS = {
    "JPEG": encoded,
    "grey": lambda image: encoded(image.convert("L")),
    "CMYK": lambda image: encoded(image.convert("CMYK")),
    "PNG": lambda image: encoded(image, "PNG"),
    "turned": lambda image: turned(image, 6),
    "mirrored": lambda image: turned(image, 5),
    "upside down": lambda image: turned(image, 3),
}


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("kind", KINDS)
def test_small_pictures_are_cut_exactly(kind, decoder):
    data = KINDS[kind](photo(*SMALL, 1))
    crops, size, found = ours(data, decoder, seed=1)
    assert size == crops.size
    difference = apart(found, plain(data, crops, crops.boxes))
    assert difference.max() <= 2
    assert difference.mean() <= 0.4


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("kind", KINDS)
def test_large_pictures_are_cut_from_a_scaled_decoding(kind, decoder):
    data = KINDS[kind](photo(*LARGE, 2))
    for seed in range(3):
        crops, size, found = ours(data, decoder, seed)
        shrink = crops.size[0] // size[0]
        assert shrink == (1 if kind in ("CMYK", "PNG") else 1 / 2 ** np.ceil(np.log2(crops.least_scale())))
        boxes = np.array(scaled_boxes(crops.boxes, crops.size, size)) * shrink
        assert np.abs(boxes - crops.boxes).max() <= shrink / 2
        sides = (crops.boxes[:, 2:] - crops.boxes[:, :2]).min(axis=1) / shrink
        assert (sides >= [crops.global_size] + [crops.local_size] * 3).all()  # nothing is enlarged
        difference = apart(found, plain(data, crops, boxes))
        assert difference.mean() <= 2
        assert np.percentile(difference, 99) <= 10
        assert apart(found, plain(data, crops, np.roll(crops.boxes, 1, axis=0))).mean() > 10  # the bounds can be missed
