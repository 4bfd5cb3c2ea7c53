"""Targets of a frozen teacher: a pass of its trunk and heads, or read from disk.

The reference is the pass; ours reads what an earlier epoch kept, checks its checksum, crop and flip, and makes the
same `Embedded` of it. Files are in the page cache, as they are when a cache fits in memory. One CPU thread.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from distill.bench.measure import interleave, use_threads
from distill.bench.rows import Row, less
from distill.config.schema import HeadsConfig, ObjectiveConfig
from distill.models.joint_heads import Heads
from distill.models.vision import VisionTower
from students import parse_arch
from teachers.cache_store import open_store
from teachers.target_cache import RowShape, TargetCache
from teachers.targets import Embedded, TargetHeads


class Size(NamedTuple):
    arch: str
    depth: int
    side: int
    images: int
    hidden: int
    bottleneck: int


FULL = Size("B/14", depth=12, side=224, images=8, hidden=2048, bottleneck=256)
QUICK = Size("tiny/8", depth=1, side=32, images=2, hidden=32, bottleneck=16)
PROTOTYPES = 256  # not part of what is kept


def measure(quick: bool) -> list[Row]:
    size = QUICK if quick else FULL
    arch = parse_arch(size.arch)
    torch.manual_seed(0)
    tower = VisionTower(arch, depth=size.depth, position_grid=size.side // arch.patch).eval()
    sizes = HeadsConfig(prototypes=PROTOTYPES, hidden=size.hidden, bottleneck=size.bottleneck)
    heads, objective = TargetHeads(Heads(arch.width, sizes), PROTOTYPES), ObjectiveConfig()
    images = torch.rand(size.images, 3, size.side, size.side)
    view = np.zeros((len(images), 8), dtype=np.int64)
    view[:, 0] = range(len(images))

    @torch.no_grad()
    def ask() -> Embedded:
        return heads.embed(tower(images), objective)

    shape = RowShape((size.side // arch.patch) ** 2, *heads.embedded_widths(objective), "fp16")
    with tempfile.TemporaryDirectory() as folder:
        cache = TargetCache(open_store(str(Path(folder) / "kept"), {}, len(images), shape.bytes), shape)

        def read() -> Embedded:
            return cache.serve(view, torch.device("cpu"), ask)

        with use_threads(1):
            read()  # keeps them
            time = interleave({"read": read, "pass": ask}, rounds=1 if quick else 5)
    what = f"{len(images)} images of {size.side} px, {arch} of {size.depth} blocks, fp16"
    return [
        less(what, time["read"].wall, time["pass"].wall, "s"),
        less(what, time["read"].cpu, time["pass"].cpu, "s of CPU"),
    ]
