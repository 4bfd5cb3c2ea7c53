"""How the files of a shard make up samples: names to parts, for indexed and streamed tars alike.

A sample's files lie next to each other and share the name up to the first dot, as webdataset writes them:
`KEY.jpg|jpeg|png|webp`, `KEY.json` and, if there is one, `KEY.mask.png`; other files are ignored. Keys that hold dots
(`photo.v2.jpg` + `photo.v2.json`) are understood as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
JSON_SUFFIX = ".json"
MASK_SUFFIX = ".mask.png"

T = TypeVar("T")  # what stands for a file: its bytes, or where it lies in the tar


@dataclass
class Parts(Generic[T]):
    """The files of one sample."""

    key: str
    image: T | None = None
    json: T | None = None
    mask: T | None = None


def base(name: str) -> str:
    """The folder and the name up to the first dot; empty for hidden files, which belong to no sample."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem = file.partition(".")[0]
    return folder + slash + stem if stem else ""


def split_suffix(name: str) -> tuple[str, str]:
    """`(key, role)` with role one of image, json, mask, or empty for a file that is no part of a sample."""
    name = name.removeprefix("./")
    lower = name.lower()
    for suffix, role in ((MASK_SUFFIX, "mask"), (JSON_SUFFIX, "json"), *((s, "image") for s in IMAGE_SUFFIXES)):
        if lower.endswith(suffix):
            return name[: -len(suffix)], role
    return name, ""


def samples(files: Iterable[tuple[str, T]]) -> Iterator[Parts[T]]:
    """Samples from a tar's `(name, file)` pairs in stored order. `image` is None where a record has none."""
    for stem, group in groupby(files, key=lambda file: base(file[0])):
        if stem:
            yield from _assemble(stem, group)


def _assemble(stem: str, files: Iterable[tuple[str, T]]) -> Iterator[Parts[T]]:
    parts: dict[str, Parts[T]] = {}
    for name, file in files:
        key, role = split_suffix(name)
        if role and getattr(parts.setdefault(key, Parts(key)), role) is None:
            setattr(parts[key], role, file)
    plain = stem in parts and parts[stem].image is not None
    for key, part in parts.items():
        # beside KEY.jpg, a KEY.depth.png is a further column of KEY; with its own json it is a sample with a dotted key
        column = plain and key != stem and (part.image is None or part.json is None)
        if not column and (part.image is not None or part.json is not None):
            yield part
