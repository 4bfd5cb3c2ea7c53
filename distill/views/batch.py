"""One image's views, and the batch they are stacked into. Pixels stay uint8 until they are on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.sample import SampleError

# What a global view is, in whole numbers: its place (epoch and position, see `Order.row`; -1 in a stream), the sample,
# a checksum of its picture, and the crop's box in pixels of the picture and whether it is mirrored.
VIEW = ("row", "index", "picture", "left", "top", "right", "bottom", "flip")


def no_view() -> np.ndarray:
    return np.full(len(VIEW), -1, dtype=np.int64)


@dataclass
class Views:
    """What the loader makes of one sample. C caption slots (one per CLS token), L tokens, N patches, M local crops."""

    global_: np.ndarray  # uint8 [3, G, G]
    local: np.ndarray  # uint8 [M, 3, h, h]
    mask: np.ndarray  # bool [N], True = replaced by the mask token in the student's corrupted view
    tokens: np.ndarray  # int64 [C, L]
    valid: np.ndarray  # bool [C, L], True = a real token, False = padding
    index: int  # the sample's index in its source
    cut: int = 0  # how many of its captions were longer than the context
    view: np.ndarray = field(default_factory=no_view)  # int64 [8], see VIEW


@dataclass
class Batch:
    """Stacked views of B images. A training step is a pure function of a batch and the training state."""

    global_: Tensor  # uint8 [B, 3, G, G]
    local: Tensor  # uint8 [B, M, 3, h, h]
    mask: Tensor  # bool [B, N]
    tokens: Tensor  # int64 [B, C, L]
    valid: Tensor  # bool [B, C, L]
    index: Tensor  # int64 [B]
    cut: int = 0  # captions cut to the context, over the batch
    failures: list[SampleError] = field(default_factory=list)  # samples skipped while this batch was filled
    view: np.ndarray | None = None  # int64 [B, 8], see VIEW; no tensor, as it is of no use on a device
    masked: int | None = None  # how many patches the masks hide in all; None: unknown, a device would be asked

    def __len__(self) -> int:
        return self.global_.shape[0]

    def images(self) -> Tensor:
        """Global crops as float32 `[B, 3, G, G]` in [0, 1], on the batch's device; each model normalises for itself."""
        return self.global_.to(torch.float32).div_(255)

    def locals_(self) -> Tensor:
        """Local crops as float32 `[B*M, 3, h, h]` in [0, 1], image-major: row b*M + m is crop m of image b."""
        return self.local.flatten(0, 1).to(torch.float32).div_(255)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {name: change(v) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **changed)


def collate(views: list[Views], failures: Iterable[SampleError] = ()) -> Batch:
    """Stacks the views of B >= 1 images; all must have the same shapes. Raises ValueError for an empty list."""
    if not views:
        raise ValueError("collate needs at least one image; got none")

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(v, name) for v in views]))

    return Batch(
        global_=stack("global_"),
        local=stack("local"),
        mask=stack("mask"),
        tokens=stack("tokens"),
        valid=stack("valid"),
        index=torch.tensor([v.index for v in views], dtype=torch.int64),
        cut=sum(v.cut for v in views),
        failures=list(failures),
        view=np.stack([v.view for v in views]),
        masked=sum(int(v.mask.sum()) for v in views),
    )
