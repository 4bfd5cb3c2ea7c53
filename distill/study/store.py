"""Finished cells on disk.

runs/<study>/cells/<variant>-s<seed>/
    spec.json      what the cell was asked to do
    cell.log       what its process printed
    cell.json      its result; written last, so that its presence means done
    pictures/      small PNGs of the same test images in every cell
    ...            the training run itself (metrics.csv, checkpoints/, ...)

A folder given with --keep holds cells in the same places, small enough to commit (distill/study/keep.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distill.study.address import same_content, same_value
from distill.study.plan import Cell

RESULT, SPEC, LOG, COST, PICTURES = "cell.json", "spec.json", "cell.log", "cost.json", "pictures"
RUN, PROGRESS, MANIFEST, LOCK = "run", "progress.json", "pictures.json", "cell.lock"
SAME = "same_as"  # in a kept cell.json: the kept cell of another study (STUDY/cells/NAME) that has the result


def write_json(path: Path, tree: Any, indent: int | None = 1) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(tree, indent=indent) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where there is none or it cannot be read (half written, or foreign)."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def matches(result: Mapping[str, Any] | None, cell: Cell) -> bool:
    """Whether a stored result was trained as this cell would be today."""
    if result is None or result.get("address") != cell.address:
        return False
    return same_content(result.get("content", {}), cell.content)


def is_done(result: Mapping[str, Any] | None, cell: Cell, evaluation: Mapping[str, Any]) -> bool:
    """Whether a stored result is this cell's, evaluated as asked (in at least the tasks asked for)."""
    if result is None or not matches(result, cell):
        return False
    had = result.get("eval", {})
    same = all(same_value(had.get(k), evaluation[k]) for k in ("dataset", "samples"))
    return same and set(evaluation["tasks"]) <= set(had.get("tasks", []))


def has_weights(folder: Path, address: str) -> bool:
    """Whether a folder holds the finished cell of this address with the last checkpoint of its run."""
    from distill.training.checkpoint import existing, step_of

    result = read_json(folder / RESULT) or {}
    steps = result.get("content", {}).get("train.steps", 0)
    return result.get("address") == address and any(
        step_of(path) >= steps for path in existing(folder / RUN / "checkpoints")
    )


def true_place(folder: Path) -> Path:
    """Where a cell's result and pictures are: its folder, or that of the kept cell that it refers to."""
    other = (read_json(folder / RESULT) or {}).get(SAME)
    return folder.parents[2] / other if isinstance(other, str) else folder


def read_result(folder: Path) -> dict[str, Any] | None:
    """A finished cell's result, also where it refers to that of another study; None where there is none."""
    own = read_json(folder / RESULT)
    if own is None or SAME not in own:
        return own
    other = read_json(true_place(folder) / RESULT)
    return None if other is None else {**other, **own}


def index_results(*roots: Path) -> dict[str, list[Path]]:
    """Address -> folders of finished cells, over all studies in `roots`; references to other cells are left out."""
    found: dict[str, list[Path]] = {}
    for path in [path for root in roots for path in sorted(root.glob(f"*/cells/*/{RESULT}"))]:
        result = read_json(path)
        if result and isinstance(result.get("address"), str) and SAME not in result:
            found.setdefault(result["address"], []).append(path.parent)
    return found


def find_shared(folders: Iterable[Path], cell: Cell, evaluation: Mapping[str, Any]) -> Path | None:
    """The first of `folders` with this cell's finished result, preferring one that still has its weights."""
    done = [f for f in folders if is_done(read_json(f / RESULT), cell, evaluation)]
    return next((f for f in done if has_weights(f, cell.address)), done[0] if done else None)


def set_aside(folder: Path) -> None:
    """Move a cell of other content out of the way, under its address, so that nothing is overwritten."""
    old = (read_json(folder / RESULT) or read_json(folder / SPEC) or {}).get("address", "unknown")
    target = folder.with_name(f"{folder.name}.{old[:8]}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.{old[:8]}-{number}")
    folder.rename(target)


def adopt(source: Path, folder: Path, cell: Cell) -> None:
    """Take over a finished cell of another study: its result and pictures are copied, its weights stay there."""
    result = read_json(source / RESULT)
    assert result is not None
    folder.mkdir(parents=True, exist_ok=True)
    if (source / PICTURES).is_dir():
        shutil.copytree(source / PICTURES, folder / PICTURES, dirs_exist_ok=True)
    shared = result.get("shared") or str(source)
    write_json(folder / RESULT, {**result, "variant": cell.variant, "seed": cell.seed, "shared": shared})


def weights_folder(folder: Path, address: str, others: Iterable[Path] = ()) -> Path | None:
    """The cell folder that has this cell's weights: its own, that of the cell it was taken from, or one of `others`."""
    shared = (read_json(folder / RESULT) or {}).get("shared")
    places = [folder, *([Path(shared)] if shared else []), *others]
    return next((place for place in places if has_weights(place, address)), None)
