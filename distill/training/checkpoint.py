"""Checkpoints: written whole or not at all, kept to a number, and read back safely.

`runs/NAME/checkpoints/step_00001000.pt` holds only tensors and plain values, so that it loads with `weights_only`.
Where weights are spread over ranks it is a folder, `step_00001000`, into which every rank writes its part (see
`distill.models.shard_files`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.models import shard_files

if TYPE_CHECKING:
    from lightning.fabric import Fabric

FORMAT = "everypatch-run"
_NAME = re.compile(r"step_(\d+)(\.pt)?")  # with the ending a file, without it a folder of shards


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def existing(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step of a checkpoint that `existing` lists."""
    return int(path.stem.removeprefix("step_"))


def save(folder: Path, step: int, content: dict[str, Any], keep: int) -> Path:
    """Writes `content` as the checkpoint of `step` and removes all but the newest `keep`.

    The file appears under its name only when it is complete and on disk. Raises UserError when there is no space; what
    was there before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = path_of(folder, step)
    partial = target.with_suffix(".pt.partial")
    try:
        _write(content, partial)
    except (OSError, RuntimeError) as error:
        _remove(partial)
        raise UserError(_write_failure(folder, target, error)) from error
    _publish(partial, target, keep)
    return target


def save_shards(
    folder: Path, step: int, plain: dict[str, Any], shards: dict[str, Tensor], keep: int, fabric: Fabric
) -> None:
    """As `save`, for what `shard_files.split` gives: rank 0 writes `plain`, every rank its slices. Collective.

    `folder` must be one place for all ranks: a file system that all machines share.
    """
    target = path_of(folder, step).with_suffix("")
    partial = target.with_suffix(".partial")
    problem: OSError | RuntimeError | None = None
    try:
        if fabric.is_global_zero:
            _remove(partial)
            partial.mkdir(parents=True)
            _write(plain, partial / shard_files.PLAIN)
    except (OSError, RuntimeError) as error:
        problem = error
    problem = fabric.broadcast(problem)
    if problem is None:
        try:
            shard_files.write_shards(partial, shards)
        except OSError as error:
            problem = error
    if problem is not None:
        if fabric.is_global_zero:
            _remove(partial)
        raise UserError(_write_failure(folder, target, problem))
    if fabric.is_global_zero:
        _sync_folder(partial)
        _remove(target)  # left by a run that ended between here and the next line
        _publish(partial, target, keep)


def _write(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _publish(partial: Path, target: Path, keep: int) -> None:
    """Gives a finished checkpoint its name and removes all but the newest `keep`."""
    os.replace(partial, target)
    _sync_folder(target.parent)
    for old in existing(target.parent)[:-keep]:
        _remove(old)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write_failure(folder: Path, target: Path, error: Exception) -> str:
    free = shutil.disk_usage(folder).free / 1e6
    kept = existing(folder)
    last = f"the last good one, {kept[-1].name}, is untouched" if kept else "there is no earlier one"
    return (
        f"Could not write checkpoint {target} ({error}; {free:.0f} MB free): {last}. "
        f"Free some space and continue with --resume."
    )


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
