"""From an encoded image to uint8 RGB pixels, whatever its colour mode and orientation."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from distill.data.decoders import PILLOW, SIMPLEJPEG, decode_simply, shrink_for
from distill.data.sample import Sample, SampleError
from distill.pixels import upright_rgb

FORMATS = ("JPEG", "PNG", "WEBP")
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap height and width


class Picture:
    """An opened image: its size is known, its pixels not yet decoded. Raises SampleError for bytes it cannot open.

    `decoder`, pillow or simplejpeg, is what decodes plain JPEGs; Pillow reads the rest: CMYK, PNG, WebP, damaged files.
    """

    def __init__(self, sample: Sample, decoder: str = PILLOW):
        self.shard, self.key, self.decoder = sample.shard, sample.key, decoder
        if isinstance(sample.image, np.ndarray):
            self.pixels: np.ndarray | None = sample.image  # [H, W, 3]
            self.size: tuple[int, int] = sample.image.shape[:2]  # (height, width), upright
            return
        self.pixels = None
        self._data = sample.image
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                self._image = Image.open(io.BytesIO(sample.image), formats=FORMATS)
            self._orientation = self._image.getexif().get(ORIENTATION, 1)
        except Exception as error:
            raise self._fail(error) from error
        width, height = self._image.size
        self.size = (width, height) if self._orientation in (5, 6, 7, 8) else (height, width)

    def decode(self, scale: float = 1.0) -> np.ndarray:
        """Pixels, uint8 `[H, W, 3]`, upright, transparency on white. Call once. Raises SampleError for corrupt data.

        With `scale` below 1 a JPEG may come out smaller (1/2, 1/4, 1/8), but never smaller than `scale` times its size.
        """
        if self.pixels is not None:
            return self.pixels
        try:
            if isinstance(self._image, JpegImageFile) and self._image.mode in ("RGB", "L"):
                return self._decode_jpeg(scale)
            return np.asarray(upright_rgb(self._image))
        except Exception as error:
            raise self._fail(error) from error

    def _decode_jpeg(self, scale: float) -> np.ndarray:
        width, height = self._image.size  # as stored
        shrink = shrink_for((height, width), scale)
        if self.decoder == SIMPLEJPEG:
            pixels = decode_simply(self._data, (height, width), shrink)
            if pixels is not None:
                return upright(pixels, self._orientation)
        if shrink > 1:
            self._image.draft(None, (width // shrink, height // shrink))
        return np.asarray(upright_rgb(self._image))

    def _fail(self, error: Exception) -> SampleError:
        if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
            return SampleError(self.shard, self.key, f"image of more than {Image.MAX_IMAGE_PIXELS} pixels")
        return SampleError(self.shard, self.key, f"corrupt image ({_first_line(error)})")


def decode(sample: Sample) -> np.ndarray:
    """The sample's pixels, uint8 `[H, W, 3]` RGB. Raises SampleError when the image is corrupt."""
    return Picture(sample).decode()


def decode_mask(data: bytes, shard: str, key: str) -> np.ndarray:
    """Class indices `[H, W]` (uint8 or int32) from a greyscale or palette PNG. Raises SampleError."""
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        if image.mode not in ("L", "P", "1", "I;16", "I"):
            raise SampleError(shard, key, f"mask.png has mode {image.mode}; allowed: greyscale or palette")
        pixels = np.asarray(image)
    except SampleError:
        raise
    except Exception as error:
        raise SampleError(shard, key, f"corrupt mask ({_first_line(error)})") from error
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.int32)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` `[H, W, 3]` turned and mirrored as EXIF's `orientation`, 1 to 8, says; other values leave them be."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _first_line(error: Exception) -> str:
    """What went wrong, without the addresses of objects, so that equal failures read alike."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "not a JPEG, PNG or WebP file" if "cannot identify image" in text else text
