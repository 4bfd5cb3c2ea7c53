"""One shard as a file: the same samples give the same bytes, and the file appears only when it is complete."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from distill.data.decode import Picture, decode_mask
from distill.data.index import open_index
from distill.data.sample import Sample, SampleError
from distill.pixels import to_rgb, upright_rgb

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # formats whose bytes are kept
SAVED = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WEBP"}  # what those that are written anew become, if not PNG
QUALITY = 90  # of a JPEG or WebP that had to be made smaller


@dataclass(frozen=True)
class Item:
    """What becomes one sample."""

    key: str
    image: str  # path
    captions: dict[str, list[str]]
    mask: str | None = None  # path of a PNG of class indices


@dataclass(frozen=True)
class Shaping:
    """What is done to images on the way."""

    max_side: int | None = None  # larger images are made smaller
    verify: bool = False  # decode every image in full, not only its header


@dataclass
class Written:
    """A finished shard."""

    file: str
    samples: int
    bytes: int
    sha256: str
    problems: list[SampleError] = field(default_factory=list)


def write_shard(path: Path, items: Iterable[Item], shaping: Shaping, step: Callable[[], None]) -> Written:
    """Writes `path` and its index; unreadable images are left out and listed. `step` is called after each item.

    Raises OSError when the disk is full; nothing is left behind then, or when `step` raises.
    """
    draft = path.with_name(f".{path.name}.part")
    problems: list[SampleError] = []
    count = 0
    try:
        with open(draft, "wb") as raw:
            stream = _Hashed(raw)
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
                for item in items:
                    try:
                        files = _files(item, shaping)
                    except SampleError as error:
                        problems.append(error)
                    else:
                        for suffix, data in files.items():
                            _add(tar, f"{item.key}.{suffix}", data)
                        count += 1
                    step()
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    open_index(str(path))
    return Written(path.name, count, stream.size, stream.digest.hexdigest(), problems)


def _files(item: Item, shaping: Shaping) -> dict[str, bytes]:
    """The sample's files by suffix, in the order they are stored. Raises SampleError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is told here
        data, suffix, size = _image(item, shaping)
    files = {suffix: data}
    texts = {name: texts[0] if len(texts) == 1 else texts for name, texts in item.captions.items()}
    meta = {"height": size[0], "width": size[1]}
    files["json"] = json.dumps({**texts, **meta}, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")
    if item.mask is not None:
        files["mask.png"] = _mask(item, size, resized=shaping.max_side is not None)
    return files


def _image(item: Item, shaping: Shaping) -> tuple[bytes, str, tuple[int, int]]:
    """`(bytes, suffix, (height, width))`; the original bytes unless too large or of another format."""
    data = _read(item.image, item)
    image = _opened(data, item)
    small = _smaller(image.size, shaping.max_side)
    _refuse_large(small or image.size, item)
    if small is None and image.format in SUFFIXES:
        picture = Picture(Sample(item.key, item.image, data))
        if shaping.verify:
            picture.decode()
        return data, SUFFIXES[image.format], picture.size
    kind = SAVED.get(image.format or "", "PNG")
    try:
        if small is not None:
            image.draft(None, (small[0] * 2, small[1] * 2))
            upright = to_rgb(image).resize(small, Image.Resampling.LANCZOS, reducing_gap=3.0)
            upright = _turned(upright, image)
        else:
            upright = upright_rgb(image)
        out = io.BytesIO()
        upright.save(out, kind, **({} if kind == "PNG" else {"quality": QUALITY}))
    except Exception as error:
        raise SampleError(item.image, item.key, f"corrupt image ({_reason(error)})") from error
    return out.getvalue(), SUFFIXES[kind], (upright.height, upright.width)


def _opened(data: bytes, item: Item) -> Image.Image:
    """The image, its pixels not yet decoded."""
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise SampleError(item.image, item.key, f"image of more than {2 * _most()} pixels") from error
    except Exception as error:
        raise SampleError(item.image, item.key, f"corrupt image ({_reason(error)})") from error


def _smaller(size: tuple[int, int], max_side: int | None) -> tuple[int, int] | None:
    """What an image of `size` (width, height) is made to be; None when it stays."""
    if max_side is None or max(size) <= max_side:
        return None
    scale = max_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _refuse_large(size: tuple[int, int], item: Item) -> None:
    """Raises SampleError for what `Picture` would not open."""
    width, height = size
    if width * height > _most():
        reason = f"image of more than {_most()} pixels ({width} x {height}: make it smaller with --max-side)"
        raise SampleError(item.image, item.key, reason)


def _most() -> int:
    return Image.MAX_IMAGE_PIXELS or sys.maxsize


def _turned(pixels: Image.Image, original: Image.Image) -> Image.Image:
    """`pixels` turned upright as the orientation stored in `original` says."""
    pixels.getexif().update(original.getexif())
    turned = ImageOps.exif_transpose(pixels)
    turned.info.pop("exif", None)
    return turned


def _mask(item: Item, size: tuple[int, int], resized: bool) -> bytes:
    """The mask's PNG bytes, made as small as the image was. Raises SampleError when it does not fit the image."""
    assert item.mask is not None
    data = _read(item.mask, item)
    indices = decode_mask(data, item.mask, item.key)  # [H, W]
    if indices.shape == size:
        return data
    height, width = size
    across, down = indices.shape[1], indices.shape[0]
    if not resized or abs(across / down - width / height) > 0.02 * width / height + 1 / height:
        found = f"{across} x {down}"
        raise SampleError(item.mask, item.key, f"mask does not fit (mask {found}, image {width} x {height})")
    whole = indices if indices.dtype == np.uint8 else indices.astype(np.uint16)  # a PNG's values are 16 bits at most
    small = Image.fromarray(whole).resize((width, height), Image.Resampling.NEAREST)
    out = io.BytesIO()
    small.save(out, "PNG")
    return out.getvalue()


def _read(path: str, item: Item) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SampleError(path, item.key, f"cannot read ({error.strerror or error})") from error


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its owner and time are zero
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))


class _Hashed:
    """A file that is only written, with its SHA-256 and size so far."""

    def __init__(self, raw: io.BufferedWriter):
        self.raw, self.digest, self.size = raw, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.raw.write(data)

    def tell(self) -> int:
        return self.size


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return "not an image" if "cannot identify image" in text else text
