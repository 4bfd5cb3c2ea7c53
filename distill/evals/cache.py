"""Features and labels of a split, kept so that probes can go over them many times after one pass over the images."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from distill.errors import UserError

GB = 10**9
FIRST, LARGEST = 1 << 20, 1 << 30  # bytes of the first temporary file, and of those that many tensors share
ALIGNED = 64  # bytes: where tensors begin in a file


class Store:
    """Keeps copies of tensors on the CPU: `memory` gigabytes of them in memory, the rest in mapped temporary files.

    The files go with the store. What is kept reads the same either way; the files' pages can leave memory when it is
    short. Many tensors share a file, each file being twice as large as the one before: a process can map only so many.
    Raises UserError, which names `option`, when the folder for temporary files has no room.
    """

    def __init__(self, memory: float, option: str):
        self.left, self.option = int(memory * GB), option
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.files = 0
        self.rest = torch.empty(0, dtype=torch.uint8)  # of a file, not yet used

    def expect(self, size: int) -> None:
        """UserError if there is no room for `size` bytes more: to be said before the hours that filling it takes."""
        inside = min(size, self.left)
        there = psutil.virtual_memory().available
        if inside > there:
            raise UserError(
                f"{self.option}: {inside / GB:.2f} GB of features are to be kept in memory, of which {there / GB:.2f} "
                f"GB are free. Lower {self.option} (gigabytes): the rest goes to temporary files."
            )
        if size > inside:
            self._free(size - inside)

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor`, same type and shape."""
        return self.empty(tensor.shape, tensor.dtype).copy_(tensor.detach())

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Room for a tensor, which is to be filled."""
        size = math.prod(shape) * dtype.itemsize
        if size <= self.left:
            self.left -= size
            return torch.empty(tuple(shape), dtype=dtype)
        shared = size <= len(self.rest)
        file = self.rest if shared else self._map(size)
        rest = file[-(-size // ALIGNED) * ALIGNED :]
        self.rest = rest if shared else max(rest, self.rest, key=len)
        return file[:size].view(dtype).reshape(tuple(shape))

    def _map(self, size: int) -> Tensor:
        """A new file of at least `size` bytes, uint8, which the disk has set aside: writing to it cannot fail later."""
        free = self._free(size)
        size = max(size, min(FIRST << self.files, LARGEST, free // 2))
        path = self._folder() / str(self.files)
        self.files += 1
        with open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    raise self._full(size, free) from error
        return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)

    def _free(self, size: int) -> int:
        """Free bytes of the disk; UserError if they are less than `size`."""
        free = shutil.disk_usage(self._folder()).free
        if size > free:
            raise self._full(size, free)
        return free

    def _full(self, size: int, free: int) -> UserError:
        return UserError(
            f"{self.option}: the features need {size / GB:.2f} GB more in {self._folder().parent}, which has "
            f"{free / GB:.2f} GB free. Raise {self.option} (gigabytes of memory), evaluate fewer images with "
            f"--samples, or set TMPDIR to a larger disk."
        )

    def _folder(self) -> Path:
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="everypatch-", ignore_cleanup_errors=True)
        return Path(self.folder.name)


@dataclass
class Kept:
    """One image: its features (float16) and its label for each pixel."""

    features: list[Tensor]  # any shapes
    label: Tensor  # [H, W, ...]


class DenseCache:
    """The images of a split for probes on patches; batches hold images whose features have one shape."""

    def __init__(self, memory: float, option: str):
        self.store = Store(memory, option)
        self.groups: dict[tuple, list[Kept]] = defaultdict(list)

    def __len__(self) -> int:
        return sum(map(len, self.groups.values()))

    def add(self, features: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """features: tensors `[B, ...]`; labels: B tensors `[H, W, ...]`, which may differ in size."""
        key = tuple(tensor.shape[1:] for tensor in features)
        halves = [self.store.keep(tensor.half()) for tensor in features]
        for at, label in enumerate(labels):
            self.groups[key].append(Kept([half[at] for half in halves], self.store.keep(label)))

    def batches(
        self, images: int, generator: torch.Generator, device: torch.device
    ) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Endless batches of at most `images`, shuffled: features float32 `[B, ...]` on `device`, and labels."""
        while True:
            chunks = []
            for group in self.groups.values():
                order = torch.randperm(len(group), generator=generator).tolist()
                chunks += [[group[i] for i in order[at : at + images]] for at in range(0, len(order), images)]
            for at in torch.randperm(len(chunks), generator=generator).tolist():
                chosen = chunks[at]
                stacked = [torch.stack(parts) for parts in zip(*(kept.features for kept in chosen))]
                yield [tensor.to(device).float() for tensor in stacked], [kept.label for kept in chosen]


def interpolate(patches: Tensor, places: Tensor) -> Tensor:
    """Patch features `[B, h, w, D]` at `places` `[B, P, 2]` -> `[B, P, D]`.

    A place is (x, y), from -1 at the left and upper border to 1 at the right and lower one. At the centres of pixels
    this is what raising the features bilinearly (align_corners=False) to the image's size gives.
    """
    grid = patches.permute(0, 3, 1, 2)
    found = torch.nn.functional.grid_sample(
        grid, places[:, None].to(grid), mode="bilinear", padding_mode="border", align_corners=False
    )  # [B, D, 1, P]
    return found[:, :, 0].transpose(1, 2)


def draw_pixels(labels: Sequence[Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` random pixels of each of B labels `[H, W, ...]`: places `[B, count, 2]` and values `[B, count, ...]`."""
    places, values = [], []
    for label in labels:
        height, width = label.shape[:2]
        at = torch.randint(height * width, (count,), generator=generator)
        places.append(centres(at // width, at % width, height, width))
        values.append(label.flatten(0, 1)[at])
    return torch.stack(places), torch.stack(values)


def centres(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Places `[P, 2]` of pixel centres in an image of this size, as `interpolate` takes them."""
    return torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
