"""From the items of a split to an `EvalDataset`: what every kind of folder has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

from distill.errors import UserError, unknown
from distill.evals.datasets.base import CAPTIONS, DEPTH, LABELS, MASKS, NORMALS, TRAIN, EvalDataset, Item, spread
from distill.evals.datasets.contents import look_at_images


class Lazily(Sequence[Item]):
    """Items made from `entries` when they are asked for: a million images need no million objects."""

    def __init__(self, entries: Sequence[Any], make: Callable[[Any], Item]):
        self.entries, self.make = entries, make

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, at: int) -> Item: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Item]: ...

    def __getitem__(self, at: int | slice) -> Item | Sequence[Item]:
        if isinstance(at, slice):
            return Lazily(self.entries[at], self.make)
        return self.make(self.entries[at])


def assemble(name: str, items: Sequence[Item], samples: int | None, size: int, **more: Any) -> EvalDataset:
    """The dataset of `items` (at most `samples`, evenly spread). `more`: further fields of `EvalDataset`.

    It has pixel labels that all items have (masks only with class names), captions and labels that some have. Items
    made lazily are expected to be alike: only the first is looked at.
    """
    chosen = spread(len(items), samples)
    seen = items[:1] if isinstance(items, Lazily) else items
    found = {
        MASKS: more.get("class_names") and all(item.mask for item in seen),
        CAPTIONS: any(item.captions for item in seen),
        LABELS: any(item.label for item in seen),
        DEPTH: all(item.depth for item in seen),
        NORMALS: all(item.normals for item in seen),
    }
    return EvalDataset(
        name=name,
        size=size,
        item=lambda index: items[chosen[index]],
        length=len(chosen),
        has=frozenset(what for what, there in found.items() if there),
        looks=look_at_images,
        **more,
    )


def add_train(dataset: EvalDataset, opened: Callable[[], EvalDataset]) -> None:
    """Gives `dataset` a split to fit on, opened when it is first needed."""
    dataset.has |= {TRAIN}
    dataset.open_train = opened


def choose_train(root: Path, splits: Sequence[str], asked: str | None, usual: str | None, split: str) -> str | None:
    """The split to fit on: the one asked for, else the `usual` one if it is there and is not evaluated itself."""
    if asked is None:
        return usual if usual in splits and usual != split else None
    if asked not in splits:
        raise unknown(f"train split of {root}", asked, splits, "Give one of them with ?train=NAME.")
    return asked


def require_items(root: Path, split: str, items: Sequence[Item], splits: Sequence[str]) -> None:
    """Raises UserError for a split without images."""
    if not len(items):
        raise UserError(f"The split '{split}' of {root} has no images (splits: {', '.join(splits)}). Choose another.")
