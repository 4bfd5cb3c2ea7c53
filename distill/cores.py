"""How many CPU threads a process may use, without importing torch."""

from __future__ import annotations

import os


def cores() -> int:
    """CPU cores that this process may run on: `taskset`, SLURM and containers with pinned cores lower it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(processes: int) -> int:
    """Threads for each of `processes` on this machine: an even share of its cores, at least 1.

    A process alone takes `OMP_NUM_THREADS` where that is less. Among several it is not asked: torchrun sets it to 1
    for all, whatever the cores.
    """
    share = max(1, cores() // processes)
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(share, int(asked)) if processes == 1 and asked.isdecimal() and int(asked) else share
