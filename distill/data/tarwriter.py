"""One shard as a file: the same samples give the same bytes, and the file appears only when it is complete."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from distill.data.decode import Picture, to_rgb
from distill.data.index import open_index
from distill.data.sample import Sample, SampleError

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # formats whose bytes are kept
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
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:
        raise SampleError(item.image, item.key, f"corrupt image ({_reason(error)})") from error
    kind = image.format or ""
    if kind in SUFFIXES:
        picture = Picture(Sample(item.key, item.image, data))
        if shaping.max_side is None or max(picture.size) <= shaping.max_side:
            if shaping.verify:
                picture.decode()
            return data, SUFFIXES[kind], picture.size
    else:
        kind = "PNG"
    try:
        if shaping.max_side is not None and max(image.size) > shaping.max_side:
            scale = shaping.max_side / max(image.size)
            small = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image.draft(None, (small[0] * 2, small[1] * 2))
            upright = to_rgb(image).resize(small, Image.Resampling.LANCZOS, reducing_gap=3.0)
            upright = _turned(upright, image)
        else:
            upright = to_rgb(ImageOps.exif_transpose(image))
        out = io.BytesIO()
        upright.save(out, kind, **({} if kind == "PNG" else {"quality": QUALITY}))
    except Exception as error:
        raise SampleError(item.image, item.key, f"corrupt image ({_reason(error)})") from error
    return out.getvalue(), SUFFIXES[kind], (upright.height, upright.width)


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
    try:
        mask = Image.open(io.BytesIO(data), formats=("PNG",))
        mask.load()
    except Exception as error:
        raise SampleError(item.mask, item.key, f"corrupt mask ({_reason(error)})") from error
    height, width = size
    if (mask.height, mask.width) == size:
        return data
    if not resized or abs(mask.width / mask.height - width / height) > 0.02 * width / height + 1 / height:
        found = f"{mask.width} x {mask.height}"
        raise SampleError(item.mask, item.key, f"mask does not fit (mask {found}, image {width} x {height})")
    indices = np.asarray(mask)
    small = Image.fromarray(indices).resize((width, height), Image.Resampling.NEAREST)
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
