"""JPEG decoders: Pillow, always there and the plain reference, and simplejpeg (extra `fast`), the same pixels sooner.

Both are libjpeg-turbo underneath, asked for the same size, transform and upsampling, so they agree bit by bit where
their versions of it do. simplejpeg leaves out Pillow's detour over four bytes a pixel and blocks of 64 KiB.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from distill.config.schema import DECODERS
from distill.errors import UserError, unknown

PILLOW, SIMPLEJPEG = "pillow", "simplejpeg"
SHRINKS = (8, 4, 2)  # what libjpeg decodes quickly at a fraction of the size


def choose_decoder(name: str) -> str:
    """The decoder meant by `data.decoder`: with `auto` simplejpeg where it is installed. Raises UserError."""
    if name not in DECODERS:
        raise unknown("data.decoder", name, DECODERS)
    there = find_spec(SIMPLEJPEG) is not None
    if name == SIMPLEJPEG and not there:
        raise UserError(
            "data.decoder is simplejpeg, but that package is not installed. "
            "Run pip install 'everypatch[fast]', or set data.decoder=pillow."
        )
    if name == "auto":
        return SIMPLEJPEG if there else PILLOW
    return name


def shrink_for(size: tuple[int, int], scale: float) -> int:
    """The largest of 1, 2, 4 and 8 by which an image of `size` may be divided and keep `scale` of it and a pixel."""
    return next((shrink for shrink in SHRINKS if shrink * scale <= 1 and shrink <= min(size)), 1)


def decode_simply(data: bytes, size: tuple[int, int], shrink: int) -> np.ndarray | None:
    """Pixels of a JPEG of `size` = (height, width) as stored, uint8 `[H / shrink, W / shrink, 3]`, sides rounded up.

    None for data with any irregularity: simplejpeg stops where Pillow may go on, and Pillow decides.
    """
    from simplejpeg import decode_jpeg

    height, width = (-(-side // shrink) for side in size)
    try:
        return decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:
        return None
