"""Time and memory, so that two ways can be compared on a machine that others use too.

Times are medians of calls taken in turn (A B A B), wall and CPU time; memory is the peak of a process of its own;
operations are counted by PyTorch.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.training.precision import cpu_multiplies_bf16

MIB = 1 << 20
Key = TypeVar("Key")


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds, in seconds a call; `cpu` sums over threads and hardly feels other programs."""

    wall: float
    cpu: float


def interleave(calls: Mapping[Key, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[Key, Timing]:
    """Times every call once a round, in turn, after `warmup` rounds that do not count."""
    wall: dict[Key, list[float]] = {name: [] for name in calls}
    cpu: dict[Key, list[float]] = {name: [] for name in calls}
    for i in range(warmup + rounds):
        for name, call in calls.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            call()
            if i >= warmup:
                cpu[name].append(time.process_time() - began_cpu)
                wall[name].append(time.perf_counter() - began)
    return {name: Timing(median(wall[name]), median(cpu[name])) for name in calls}


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call, its backward pass included: matrix products and convolutions.

    Attention counts on a GPU alone, as PyTorch's counter does not know the kernel for CPUs.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def cpu_precisions() -> list[str]:
    """The precisions that a run on this CPU would be given: fp32, and bf16 where the CPU has its products."""
    return ["fp32", "bf16"] if cpu_multiplies_bf16() else ["fp32"]


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Runs with `count` CPU threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(prepare: Callable[..., Callable[[], Any]], *args: Any, threads: int = 1, fresh: bool = True) -> float:
    """How far resident memory rises during a call, in MiB, in a fresh process (or, quick and less exact, in this one).

    `prepare(*args)` builds what the call needs and returns the call: what it builds does not count, what the call
    allocates does. `prepare` is a module's own function and `args` can be pickled. Linux only.
    """
    if not fresh:
        return _rise(prepare, args, threads)
    # not forked: a fork maps the libraries' code anew, page by page, and the call would be charged for it
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(partial(_rise, prepare, args, threads))


def _rise(prepare: Callable[..., Callable[[], Any]], args: tuple[Any, ...], count: int) -> float:
    with use_threads(count):
        call = prepare(*args)
        gc.collect()
        _hand_back()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _status("VmRSS")
        call()
        return max(1, _status("VmHWM") - before) / 1024  # at least 1 KiB, so that ratios exist


def _hand_back() -> None:
    """Gives freed memory back to the system: the call would take it first, and its rise would look smaller."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def _status(name: str) -> int:
    """A value of /proc/self/status, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name + ":")))
