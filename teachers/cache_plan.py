"""How large a cache of targets becomes, and whether there is room for it, before anything is written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from distill.config.schema import Config
from teachers.cache_store import RECORD_BYTES
from teachers.target_cache import RowShape

GIB = 1 << 30


@dataclass(frozen=True)
class CachePlan:
    """`rows` views there are in all; `used` of them come up in the run, and only those are kept."""

    path: str
    epochs: int
    samples: int  # of the source
    epoch_size: int
    seen: int  # images of the whole run
    shape: RowShape
    limit: float  # GiB

    @property
    def rows(self) -> int:
        return self.epochs * self.epoch_size

    @property
    def used(self) -> int:
        return min(self.rows, self.seen)

    @property
    def bytes(self) -> int:
        return self.used * (self.shape.bytes + RECORD_BYTES)

    def line(self) -> str:
        """Views, size, space and what is saved, in one line."""
        shape = self.shape
        parts = [] if shape.cls_width is None else [f"CLS {shape.cls_width}"]
        parts += [] if shape.patch_width is None else [f"{shape.patches} patches x {shape.patch_width}"]
        return (
            f"{self.epochs} x {self.epoch_size:,} views of {' + '.join(parts)} in {shape.dtype} = "
            f"{size_text(self.bytes)} at {self.path} ({size_text(free_bytes(self.path))} free); "
            f"the teacher sees {self.used / self.seen:.0%} of the run's images"
        )

    def problem(self) -> str | None:
        """Why the cache cannot be made, as one sentence with the fix."""
        fix = "Lower teacher.cache.epochs, set teacher.cache.dtype=fp16, or set teacher.cache.path=null."
        if self.bytes > self.limit * GIB:
            return (
                f"teacher.cache.path: the targets take {size_text(self.bytes)}, but teacher.cache.limit is "
                f"{self.limit:g} GiB. Raise it. {fix}"
            )
        missing = self.bytes - stored_bytes(self.path)
        if missing > free_bytes(self.path):
            return (
                f"teacher.cache.path: the targets still to be kept take {size_text(missing)}, but {self.path} has "
                f"{size_text(free_bytes(self.path))} free. Give another folder. {fix}"
            )
        return None


def plan_cache(cfg: Config, samples: int, grid: int, widths: tuple[int | None, int | None]) -> CachePlan:
    """The plan of a recipe with `teacher.cache.path`.

    Args:
        samples: length of the data source.
        grid: side of the student's grid of patches.
        widths: channels kept of CLS and of a patch, see `TargetHeads.embedded_widths`.
    """
    cache = cfg.teacher.cache
    assert cache.path is not None
    shape = RowShape(grid**2, *widths, cache.dtype)
    seen = cfg.train.steps * cfg.train.batch
    return CachePlan(cache.path, cache.epochs, samples, cfg.data.epoch or samples, seen, shape, cache.limit)


def free_bytes(path: str) -> int:
    """Free space where `path` is or will be."""
    folder = Path(path).expanduser().absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def stored_bytes(path: str) -> int:
    """What the cache takes on the disk already; files have holes where nothing is kept yet."""
    files = Path(path).expanduser().glob("*.bin")
    return sum(getattr(file.stat(), "st_blocks", 0) * 512 for file in files)


def size_text(size: float) -> str:
    if size >= GIB:
        return f"{size / GIB:,.1f} GiB"
    return f"{size / 2**20:,.1f} MiB"
