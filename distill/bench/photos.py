"""Made-up photographs with the statistics that decoding and resizing feel: spectrum, edges, noise, bytes a pixel.

At 256 x 192 px they take as many bytes as photographs do and have their mean gradient (107 street photos, textbook
figures and COCO pictures, medians: 0.24 bytes a pixel at quality 75, 0.28 at 85, gradient 9 grey levels; made up: 0.23,
0.31 and 8). Larger ones follow by the spectrum, which natural pictures share at every scale.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

FALLOFF = 1.5  # amplitude ~ frequency ** -FALLOFF
CONTRAST, CHROMA, NOISE = 50.0, 15.0, 1.0  # standard deviations, in grey levels
DISCS = 12  # sharp edges at every scale


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB picture of smooth structures of all sizes, discs with sharp edges, and a little noise."""
    rng = np.random.default_rng(seed)
    luma, blue, red = (_field(rng, height, width) for _ in range(3))
    y, cb, cr = 128 + CONTRAST * luma, CHROMA * blue, CHROMA * red
    pixels = np.stack([y + 1.402 * cr, y - 0.344 * cb - 0.714 * cr, y + 1.772 * cb], axis=2)  # [H, W, 3]
    rows, columns = np.mgrid[:height, :width]
    for _ in range(DISCS):
        row, column, radius = (
            rng.uniform(0, height),
            rng.uniform(0, width),
            rng.uniform(0.05, 0.25) * min(height, width),
        )
        pixels[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] += rng.uniform(-70, 70, 3)
    pixels += rng.normal(0, NOISE, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> bytes:
    """The picture as a baseline JPEG with halved chroma, as most photographs on the web."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=2)
    return out.getvalue()


def _field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random plane `[H, W]` of the set spectrum, mean 0 and deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    waves = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    plane = np.fft.irfft2(waves / frequency**FALLOFF, s=(height, width))
    return (plane - plane.mean()) / plane.std()
