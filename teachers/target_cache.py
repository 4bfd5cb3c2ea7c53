"""Targets of a frozen teacher kept on disk, that stay valid under augmentation.

A teacher sees a random crop, so that what it says of an image is of no use for the next epoch's crop. With
`teacher.cache.epochs` K, crops, flips and the order of epoch e are those of epoch e mod K: there are K views of each
image, and the teacher sees each once. Masks, captions and what the loss supervises still change every epoch.

What is kept is `Embedded`: unit bottleneck vectors of CLS-1 and of every patch for prototype targets, features where
the patch loss regresses them. With each goes its view (sample, checksum of its picture, crop box, flip), which must be
that of the batch when the row is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.objectives.distributed import all_reduce_max, world_size
from distill.views.batch import VIEW
from teachers.cache_store import Store
from teachers.targets import Embedded

DTYPES: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}
ROW, INDEX = VIEW.index("row"), VIEW.index("index")
BOX = slice(VIEW.index("left"), VIEW.index("flip") + 1)


@dataclass(frozen=True)
class RowShape:
    """The numbers of a row: CLS first, then the patches; a width is None where its loss is off."""

    patches: int  # N
    cls_width: int | None
    patch_width: int | None
    dtype: str  # of `DTYPES`

    @property
    def cls_numbers(self) -> int:
        return self.cls_width or 0

    @property
    def numbers(self) -> int:
        return self.cls_numbers + self.patches * (self.patch_width or 0)

    @property
    def bytes(self) -> int:
        return self.numbers * DTYPES[self.dtype].itemsize


class TargetCache:
    """Serves what a teacher said of a view before, and keeps what it says now."""

    def __init__(self, store: Store, shape: RowShape):
        self.store, self.shape = store, shape

    def serve(self, view: np.ndarray, device: torch.device, compute: Callable[[], Embedded]) -> Embedded:
        """What targets of a batch are made of; `view` int64 `[B, 8]`, see `VIEW`.

        When every row is kept, `compute` (a pass of the teacher over the whole batch) is not called. Otherwise it is,
        on every rank, as the weights of a teacher may be spread over them, and what was missing is kept. Either way the
        numbers are those that the cache gives back, rounded to its dtype.

        Raises `UserError` when a kept row is of another picture or crop, and when numbers do not fit the dtype.
        """
        data = np.empty((len(view), self.shape.bytes), dtype=np.uint8)
        kept = [self._read(own, row) for own, row in zip(view, data)]
        if _anywhere(not all(kept), device):
            numbers = self._packed(compute())  # [B, numbers]
            data = numbers.view(np.uint8)
            for own, row, there in zip(view, data, kept):
                if there is None:
                    self.store.write(int(own[ROW]), own, row)
        return self._unpacked(data.view(DTYPES[self.shape.dtype]), device)

    def _read(self, view: np.ndarray, out: np.ndarray) -> bool | None:
        """True: `out` is filled; None: there is no such row; False: another sample has the row.

        The last happens where a sample cannot be used in one epoch, as its caption has no words, and another takes its
        place: then the batch is computed, and nothing is overwritten.
        """
        found = self.store.read(int(view[ROW]), out)
        if found is None:
            return None
        if found[INDEX] != view[INDEX]:
            return False
        if (found != view).any():
            raise UserError(self._mismatch(found, view))
        return True

    def _mismatch(self, found: np.ndarray, view: np.ndarray) -> str:
        where = f"teacher.cache.path={self.store.folder}: of sample {view[INDEX]}"
        if (found[BOX] != view[BOX]).any():
            names = ", ".join(VIEW[BOX])
            there, here = found[BOX].tolist(), view[BOX].tolist()
            return (
                f"{where} it holds targets of the crop {there}, but the view is {here} ({names}). Give another folder."
            )
        return f"{where} it holds targets of another picture. Restore the data, or give another folder."

    def _packed(self, embedded: Embedded) -> np.ndarray:
        """`[B, numbers]` in the cache's dtype. Raises `UserError` when a number does not fit it."""
        parts = [part.flatten(1).float() for part in (embedded.cls, embedded.patches) if part is not None]
        exact = torch.cat(parts, dim=1).cpu().numpy()
        with np.errstate(over="ignore"):
            numbers = exact.astype(DTYPES[self.shape.dtype])
        if not np.isfinite(numbers).all() and np.isfinite(exact).all():
            raise UserError(
                f"teacher.cache.dtype={self.shape.dtype} cannot hold a feature of {np.abs(exact).max():.3g}: set it "
                "to fp32."
            )
        return numbers

    def _unpacked(self, numbers: np.ndarray, device: torch.device) -> Embedded:
        shape = self.shape
        all_ = torch.from_numpy(numbers).to(device).float()  # [B, numbers]; halves travel as halves
        cls: Tensor | None = None if shape.cls_width is None else all_[:, : shape.cls_numbers]
        if shape.patch_width is None:
            return Embedded(cls, None)
        return Embedded(cls, all_[:, shape.cls_numbers :].unflatten(1, (shape.patches, shape.patch_width)))


def _anywhere(missing: bool, device: torch.device) -> bool:
    """Whether something is missing on any rank; all ranks get the same answer."""
    if world_size() == 1:
        return missing
    return bool(all_reduce_max(torch.tensor(float(missing), device=device)) > 0)
