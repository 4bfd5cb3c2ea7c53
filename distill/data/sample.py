"""What a data source gives: one image with its captions, and whatever dense labels it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass
class Sample:
    """One image-text record.

    `image` is either the encoded file (JPEG, PNG or WebP bytes) or decoded pixels, uint8 `[H, W, 3]`.
    `captions` maps a field name to its texts (at least one each). Dense labels share the image's height and width.
    """

    key: str  # unique within its shard
    shard: str  # where it came from, for messages: a tar's path, or "scenes"
    image: bytes | np.ndarray
    captions: dict[str, list[str]] = field(default_factory=dict)
    mask: np.ndarray | None = None  # [H, W] integer class indices, 255 = ignore
    depth: np.ndarray | None = None  # [H, W] float32, metres (scenes: units of the image's side)
    normals: np.ndarray | None = None  # [H, W, 3] float32, unit length


def printable(text: str) -> str:
    """`text` with '?' for what no encoding can print: the half characters of a file name that is not UTF-8."""
    return text.encode("utf-8", "replace").decode()


class SampleError(Exception):
    """A sample that cannot be used; the stream skips, counts and reports it."""

    def __init__(self, shard: str, key: str, reason: str):
        super().__init__(printable(f"{shard}: {key}: {reason}"))
        self.shard, self.key, self.reason = shard, key, reason

    def __reduce__(self):  # survives the trip from a worker process
        return (SampleError, (self.shard, self.key, self.reason))


@runtime_checkable
class Source(Protocol):
    """Random access to samples: the same index always gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`; raises `SampleError` when it cannot be read."""
        ...
