"""Writing shards in several processes, with a count of samples done, and a clean end on Ctrl-C or a full disk."""

from __future__ import annotations

import errno
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from distill.data.tarwriter import Item, Shaping, Written, write_shard
from distill.errors import UserError

_shared: dict[str, Any] = {}  # in a worker process: the counter and the stop sign


class _Stopped(Exception):
    pass


def write_shards(
    jobs: dict[Path, list[Item]], shaping: Shaping, workers: int, show: Callable[[int], None]
) -> Iterator[Written]:
    """Writes each path's items, as they get done; `show` gets the number of samples done so far.

    Raises UserError when the disk is full or cannot be written; finished shards stay.
    """
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    workers = min(workers, len(jobs))
    if workers <= 1:
        step = partial(_tick, counter, stop, show)
        for path, items in jobs.items():
            yield _guarded(path, partial(write_shard, path, items, shaping, step))
        return
    with ProcessPoolExecutor(workers, context, _share, (counter, stop)) as pool:
        try:
            folder = next(iter(jobs)).parent
            waiting = {pool.submit(_job, path, items, shaping) for path, items in jobs.items()}
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                show(counter.value)
                for future in finished:
                    yield _guarded(folder, future.result)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _guarded(path: Path, work: Callable[[], Written]) -> Written:
    try:
        return work()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
        folder = path if path.is_dir() else path.parent
        free = shutil.disk_usage(folder).free / 2**20
        raise UserError(
            f"No space left in {folder} ({free:.0f} MiB free). The finished shards stay; free some space and run "
            "the same command again."
        ) from error


def _tick(counter: Any, stop: Any, show: Callable[[int], None] | None = None) -> None:
    if stop.is_set():
        raise _Stopped
    with counter.get_lock():
        counter.value += 1
    if show is not None:
        show(counter.value)


def _share(counter: Any, stop: Any) -> None:
    """In a worker process: takes the counter, and leaves Ctrl-C to the parent, which then sets the stop sign."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _shared.update(counter=counter, stop=stop)


def _job(path: Path, items: list[Item], shaping: Shaping) -> Written:
    return write_shard(path, items, shaping, lambda: _tick(_shared["counter"], _shared["stop"]))
