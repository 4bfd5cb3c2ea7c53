"""Finished cells on disk.

runs/<study>/cells/<variant>-s<seed>/
    spec.json      what the cell was asked to do
    cell.log       what its process printed
    cell.json      its result; written last, so that its presence means done
    pictures/      small PNGs of the same test images in every cell
    ...            the training run itself (metrics.csv, checkpoints/, ...)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distill.study.address import same_content
from distill.study.plan import Cell

RESULT, SPEC, LOG, COST, PICTURES = "cell.json", "spec.json", "cell.log", "cost.json", "pictures"
RUN, PROGRESS, MANIFEST = "run", "progress.json", "pictures.json"


def write_json(path: Path, tree: Any) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
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
    same = all(had.get(k) == evaluation[k] for k in ("dataset", "samples"))
    return same and set(evaluation["tasks"]) <= set(had.get("tasks", []))


def has_weights(folder: Path) -> bool:
    """Whether a cell still holds a checkpoint of its run."""
    from distill.training.checkpoint import existing

    return bool(existing(folder / RUN / "checkpoints"))


def index_results(runs: Path) -> dict[str, list[Path]]:
    """Address -> folders of finished cells, over all studies."""
    found: dict[str, list[Path]] = {}
    for path in sorted(runs.glob(f"*/cells/*/{RESULT}")):
        result = read_json(path)
        if result and isinstance(result.get("address"), str):
            found.setdefault(result["address"], []).append(path.parent)
    return found


def find_shared(folders: Iterable[Path], cell: Cell, evaluation: Mapping[str, Any]) -> Path | None:
    """The first of `folders` with this cell's finished result, preferring one that still has its weights."""
    done = [f for f in folders if is_done(read_json(f / RESULT), cell, evaluation)]
    return next((f for f in done if has_weights(f)), done[0] if done else None)


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


def weights_folder(folder: Path) -> Path:
    """The cell folder that has a finished cell's weights: its own, or that of the cell it was taken from."""
    shared = (read_json(folder / RESULT) or {}).get("shared")
    return folder if has_weights(folder) or not shared else Path(shared)
