"""Pictures of any colour mode and orientation as upright RGB, for training and use alike. Knows nothing of torch.

What moves pixels here moves the numbers of every evaluation: raise REVISION in distill/evals/store.py with it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def upright_rgb(image: Image.Image) -> Image.Image:
    """An RGB copy of `image`, turned and mirrored as its EXIF orientation says; see `to_rgb`."""
    return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """An RGB copy: 16-bit grey is scaled to 8 bits, transparent pixels are laid on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        wide = np.asarray(image).astype(np.float64) / 257.0  # 65535 -> 255
        return Image.fromarray(np.clip(np.rint(wide), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")  # Pillow has no La to RGBA
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
