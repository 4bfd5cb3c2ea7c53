"""A benchmark in the layout its publishers ship: what `distill.evals.datasets` needs to know about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from distill.errors import UserError, unknown
from distill.evals.datasets.assemble import add_train, assemble, choose_train, require_items
from distill.evals.datasets.base import EvalDataset, Item
from distill.evals.datasets.files import entries

IGNORE = 255  # mask value that is not scored


class Benchmark(ABC):
    """One kind of dataset, `KIND:ROOT`. A new one is a file with a subclass, and a line in `catalogue.py`."""

    kind: str  # the word in `KIND:ROOT`
    expected: str  # the sub-folders and files its root holds, for messages
    inside: ClassVar[tuple[str, ...]] = ()  # folders that archives unpack to: the root may be above them
    split: str  # evaluated unless another is asked for
    fitted: str | None = None  # the split that probes are fitted on
    size: int = 224  # pixels of the short side unless --size is given
    prompts: str = "tcl"
    field: str | None = None  # the caption field of retrieval

    @abstractmethod
    def fits(self, root: Path) -> bool:
        """Whether `root` holds what is expected."""

    @abstractmethod
    def splits(self, root: Path) -> list[str]:
        """The splits that are there."""

    @abstractmethod
    def items(self, root: Path, split: str) -> Sequence[Item]:
        """The split's images in a fixed order. UserError for a listed file that is missing."""

    def names(self, root: Path, split: str) -> tuple[list[str], list[str]]:
        """Names of the classes in the order of the labels, and what prompts say for them."""
        return [], []

    def answers(self, root: Path, split: str) -> list[int]:
        """The classes that an image's label can be in this split; empty: every class."""
        return []

    def open(
        self,
        where: Path,
        *,
        split: str | None = None,
        train: str | None = None,
        samples: int | None = None,
        size: int | None = None,
        field: str | None = None,
    ) -> EvalDataset:
        """One split. Raises UserError for a wrong root (naming what was expected and found), split or file."""
        root = self.locate(where)
        splits = self.splits(root)
        split = split or self.split
        if split not in splits:
            raise unknown(f"split of {root}", split, splits, "Choose one with ?split=NAME.")
        fitted = choose_train(root, splits, train, self.fitted, split)
        items = self.items(root, split)
        require_items(root, split, items, splits)
        classes, prompt_names = self.names(root, split)
        dataset = assemble(
            f"{self.kind} {split}",
            items,
            samples,
            size or self.size,
            class_names=classes,
            prompt_names=prompt_names,
            label_classes=self.answers(root, split),
            ignore=IGNORE,
            prompts=self.prompts,
            caption_fields=list(items[0].captions or {}),
            caption_field=field or self.field,
        )
        if fitted is not None:
            options: dict[str, Any] = {"split": fitted, "samples": samples, "size": size, "field": field}
            add_train(dataset, partial(self.open, where, **options))
        return dataset

    def locate(self, where: Path) -> Path:
        """`where`, or the folder of the archive inside it; UserError naming what was expected and what was found."""
        for folder in ("", *self.inside):
            if (where / folder).is_dir() and self.fits(where / folder):
                return where / folder
        also = f" (or these in {' or '.join(f'{name}/' for name in self.inside)})" if self.inside else ""
        raise UserError(
            f"{where} is no {self.kind} dataset. Expected there: {self.expected}{also}. Found: {entries(where)}."
        )
