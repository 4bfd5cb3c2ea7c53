"""A training step of pretrain/scenes_tiny, the study's workhorse, against the same step taken the plain way.

The plain way is a trunk pass for every view and PyTorch's fused attention. One CPU thread, CPU time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from distill.bench import ours
from distill.bench.measure import cpu_precisions, interleave, use_threads
from distill.bench.rows import Row, less
from distill.models import attention
from distill.models.vision import VisionTower


def prepare(plain: bool, precision: str) -> Callable[[], Any]:
    """A call that takes one step."""
    cfg = ours.configure("pretrain/scenes_tiny", {"train.accelerator": "cpu", "train.precision": precision})
    state = ours.start(cfg)
    batch = ours.fake_batch(cfg, state.distiller.student("student").model.tokenizer.vocabulary)
    if not plain:
        return lambda: ours.one_step(state, batch)

    def step() -> Any:
        with ExitStack() as stack:
            stack.enter_context(patch.object(VisionTower, "packs", False))
            stack.enter_context(patch.object(attention, "PLAIN_UP_TO", 0))
            return ours.one_step(state, batch)

    return step


def measure(quick: bool) -> list[Row]:
    precisions = cpu_precisions()
    with use_threads(1):
        calls = {(plain, p): prepare(plain, p) for plain in (False, True) for p in precisions}
        time = interleave(calls, rounds=1 if quick else 30, warmup=1 if quick else 5)
    rows = [less(f"both in {p}", 1e3 * time[False, p].cpu, 1e3 * time[True, p].cpu, "ms of CPU") for p in precisions]
    for p in precisions[1:]:
        what = f"ours in {p}, the plain way in fp32"
        rows.append(less(what, 1e3 * time[False, p].cpu, 1e3 * time[True, "fp32"].cpu, "ms of CPU"))
    return rows
