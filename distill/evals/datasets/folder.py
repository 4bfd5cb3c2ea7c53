"""Evaluation data from plain folders, in one of the layouts of `distill.evals.datasets.layouts`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from distill.errors import UserError, unknown
from distill.evals.datasets.assemble import add_train, assemble, choose_train, require_items
from distill.evals.datasets.base import EvalDataset
from distill.evals.datasets.files import entries
from distill.evals.datasets.layouts import LAYOUTS, Layout

PREFERRED = ("test", "val", "all")  # how the name of a split to evaluate on begins, best first


def open_folder(
    root: Path,
    *,
    split: str | None = None,
    train: str | None = None,
    samples: int | None = None,
    size: int = 224,
    field: str | None = None,
) -> EvalDataset:
    """One split of a folder. `split` None: test..., else val..., else the only one. `train` None: train... if there.

    Raises UserError with what was expected and found for a missing path, split, file or class list.
    """
    layout = find_layout(root)
    splits = layout.splits(root)
    split = _choose(root, splits, split)
    if train is None:
        train = next((name for name in splits if name.startswith("train") and name != split), None)
    train = choose_train(root, splits, train, None, split)
    items = layout.items(root, split)
    require_items(root, split, items, splits)
    names, prompts, ignore = layout.classes(root)
    dataset = assemble(
        f"folder:{root.name} {split}",
        items,
        samples,
        size,
        class_names=names,
        prompt_names=prompts,
        ignore=ignore,
        caption_fields=list(dict.fromkeys(name for item in items for name in item.captions or {})),
        caption_field=field,
    )
    if train is not None:
        again: dict[str, Any] = {"split": train, "samples": samples, "size": size, "field": field}
        add_train(dataset, partial(open_folder, root, **again))
    return dataset


def find_layout(root: Path) -> Layout:
    """The layout of `root`; UserError naming the sub-folders that were expected and those found."""
    if not root.is_dir():
        raise UserError(
            f"No folder {root}. Expected there: {_expected()}. Found in {root.parent}: {entries(root.parent)}."
        )
    for layout in LAYOUTS:
        if layout.fits(root):
            return layout
    raise UserError(f"Unknown layout of {root}. Expected: {_expected()}. Found: {entries(root)}.")


def _expected() -> str:
    return "; or ".join(layout.expected for layout in LAYOUTS)


def _choose(root: Path, splits: list[str], split: str | None) -> str:
    if split is None:
        known = [name for prefix in PREFERRED for name in splits if name.startswith(prefix)]
        if known or len(splits) == 1:
            return (known or splits)[0]
        raise UserError(f"{root} has the splits {', '.join(splits)}. Choose one with ?split=NAME.")
    if split not in splits:
        raise unknown(f"split of {root}", split, splits, "Choose one with ?split=NAME.")
    return split
