"""Checkpoints: written whole or not at all, kept to a number, and read back safely.

`runs/NAME/checkpoints/step_00001000.pt` holds only tensors and plain values, so that it loads with `weights_only`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from distill.errors import UserError

FORMAT = "everypatch-run"


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def existing(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder.glob("step_*.pt"))


def save(folder: Path, step: int, content: dict[str, Any], keep: int) -> Path:
    """Writes `content` as the checkpoint of `step` and removes all but the newest `keep`.

    The file appears under its name only when it is complete and on disk. Raises UserError when there is no space; what
    was there before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = path_of(folder, step)
    partial = target.with_suffix(".pt.partial")
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UserError(_write_failure(folder, target, error)) from error
    os.replace(partial, target)
    _sync_folder(folder)
    for old in existing(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return target


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
