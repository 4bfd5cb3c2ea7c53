"""On a CUDA GPU: distilling ViT-L/14 from ViT-g/14 and pretraining ViT-L/14 with iBOT++, both at 224 px in bf16.

The steps are the real loop's, with compiled blocks, the fused optimiser and no wait for the device (one that waits is
an error here). "Share of the matrix rate" is the step's floating-point operations, counted by PyTorch, per second over
the rate of one large bf16 product on the same card. The prototype loss in chunks meets the plain one as on the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from distill.bench import ours
from distill.bench.measure import operations
from distill.bench.prototype_loss import FULL, prepare
from distill.bench.rows import Row, less, not_measured, plain

SETTINGS: dict[str, Any] = {
    "data.shards": "unused",
    "text.tokenizer": "clip",
    "train.devices": 1,
    "train.batch": 64,
    "train.precision": "bf16",
    "train.accelerator": "cuda",
    "train.compile": "blocks",
}
SMALL: dict[str, Any] = {
    "students.0.arch": "tiny/14",
    "students.0.depth": 1,
    "views.global_size": 28,
    "views.local_size": 14,
    "text.tokenizer": "words",
    "text.layers": 1,
    "heads.prototypes": 64,
    "train.batch": 2,
    "train.compile": "none",
}
WHY = "no GPU at hand"
STEPS = {  # what: (changes, the frozen teacher's size)
    "distil L/14 from g/14": ({"mask.ratio": 0.0}, "g/14"),
    "pretrain L/14 with iBOT++": ({}, None),
}


def measure(quick: bool) -> list[Row]:
    what = f"prototype loss, {FULL['tokens']:,} tokens, {FULL['prototypes']:,} prototypes"
    if not torch.cuda.is_available():
        rows = [not_measured(step, unit, WHY) for step in STEPS for unit in ("steps/s", "share of the matrix rate")]
        return [*rows, not_measured(what, "s", WHY), not_measured(what, "MiB at the peak", WHY)]
    rows = [row for step in STEPS for row in model_rows(step, "cuda", quick)]
    calls = {kind: prepare(kind, *FULL.values(), device="cuda") for kind in ("chunked", "plain")}
    times = {kind: seconds(call, "cuda", 5) for kind, call in calls.items()}
    peaks = {kind: cuda_peak(call) for kind, call in calls.items()}
    return [
        *rows,
        less(what, times["chunked"], times["plain"], "s"),
        less(what, peaks["chunked"], peaks["plain"], "MiB at the peak"),
    ]


def model_rows(step: str, device: str, quick: bool) -> list[Row]:
    """Steps per second and the share of the matrix rate of one of `STEPS`."""
    changes, teacher = STEPS[step]
    settings = SETTINGS | changes | (SMALL if quick else {}) | {"train.accelerator": device}
    small_teacher = "tiny/14" if quick and teacher else teacher
    state, batch = _step(settings | {"train.compile": "none"}, small_teacher)
    needed = operations(lambda: ours.one_step(state, batch))
    state, batch = _step(settings, small_teacher)
    check_no_waits(lambda: ours.one_step(state, batch), device)
    second = seconds(lambda: ours.one_step(state, batch), device, 1 if quick else 20)
    share = needed / second / matrix_rate(device, 256 if quick else 8192)
    return [plain(step, 1 / second, "steps/s"), plain(step, share, "share of the matrix rate")]


def _step(settings: dict[str, Any], teacher: str | None) -> tuple[Any, Any]:
    """A run before its first step, and a batch on its device."""
    state = ours.start(ours.configure("pretrain/tipsv2_l14", settings), teacher)
    batch = ours.fake_batch(state.cfg, state.distiller.student("student").model.tokenizer.vocabulary)
    return state, batch.to(state.fabric.device)


def seconds(call: Callable[[], Any], device: str, rounds: int) -> float:
    """The median time of a call, the device's work included, after two calls that do not count."""
    times = []
    for _ in range(rounds + 2):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - began)
    return median(times[2:])


def matrix_rate(device: str, side: int) -> float:
    """Operations per second of a bf16 product of two square matrices."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / seconds(lambda: a @ a, device, 10)


def cuda_peak(call: Callable[[], Any]) -> float:
    """How far allocated memory rises during a call, MiB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / (1 << 20)


def check_no_waits(step: Callable[[], Any], device: str) -> None:
    """Takes a few steps, so that everything is compiled, then one in which waiting for the device is an error."""
    for _ in range(3 if device == "cuda" else 0):
        step()
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
