"""`train.checkpointing`: forward and backward pass of an image tower whose blocks keep less for the backward pass.

Ours are `selective` and `full`; the reference is `none`. Same gradients, bit by bit. One CPU thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from distill.bench.measure import interleave, peak_memory, use_threads
from distill.bench.rows import Row, less
from distill.models.vision import VisionTower
from distill.training.recompute import recompute_blocks
from students import parse_arch

FULL: dict[str, Any] = {"arch": "S/14", "side": 224, "images": 8}
QUICK: dict[str, Any] = {"arch": "tiny/8", "side": 32, "images": 2}
KINDS = ("none", "selective", "full")


def prepare(kind: str, arch: str, side: int, images: int) -> Callable[[], Any]:
    """A call that computes one step's gradients; `kind` is a value of `train.checkpointing`."""
    torch.manual_seed(0)
    tower = VisionTower(parse_arch(arch), position_grid=side // parse_arch(arch).patch)
    recompute_blocks(tower, kind)
    batch = torch.rand(images, 3, side, side)

    def step() -> None:
        tower.zero_grad(set_to_none=False)
        tower(batch).patches.square().mean().backward()

    step()  # the gradients have their memory
    return step


def measure(quick: bool) -> list[Row]:
    size = QUICK if quick else FULL
    what = f"{size['arch']}, {size['images']} images of {size['side']} px"
    with use_threads(1):
        time = interleave({kind: prepare(kind, **size) for kind in KINDS}, rounds=1 if quick else 3)
    memory = {kind: peak_memory(prepare, kind, *size.values(), fresh=not quick) for kind in KINDS}
    rows = []
    for kind in KINDS[1:]:
        rows.append(less(f"{what}, {kind}", memory[kind], memory["none"], "MiB of activations"))
        rows.append(less(f"{what}, {kind}", time[kind].cpu, time["none"].cpu, "s of CPU"))
    return rows
