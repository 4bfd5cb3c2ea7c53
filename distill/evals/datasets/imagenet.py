"""ImageNet-1k and its variants (`imagenet:ROOT`), class folders named by WordNet id or by label.

    {train,val}/n01440764/*.JPEG                  ILSVRC 2012 as everybody unpacks it
    ILSVRC/Data/CLS-LOC/{train/n01440764,val}/    with LOC_val_solution.csv beside ILSVRC/: Kaggle's archive as it is
    n01440764/*.jpg                               ImageNet-A, ImageNet-R, ImageNet-Sketch: the root itself
    0/*.jpeg ... 999/*.jpeg                       ImageNetV2: folders named by label

Classes: the 1,000 in the order of their sorted WordNet ids, with CLIP's names. Where only some WordNet ids have a
folder in any split (A and R: 200), only those are classes; those with a folder in the evaluated split are its answers,
as these variants are scored. ImageNetV2 has all 1,000.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from timm.data import ImageNetInfo

from distill.errors import UserError
from distill.evals.class_names import class_list
from distill.evals.datasets.assemble import Lazily
from distill.evals.datasets.base import Item
from distill.evals.datasets.benchmark import Benchmark
from distill.evals.datasets.files import decode, list_images, require_file

KAGGLE = Path("Data/CLS-LOC")
SOLUTION = "LOC_val_solution.csv"


@cache
def wordnet_ids() -> dict[str, int]:
    """The 1,000 WordNet ids and their labels."""
    return {name: at for at, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}


class ImageNet(Benchmark):
    kind = "imagenet"
    expected = (
        f"val/ and train/ with folders named n01440764 ..., or such folders, or ILSVRC/{KAGGLE}/val with {SOLUTION}"
    )
    inside = ("ILSVRC",)
    split, fitted, prompts = "val", "train", "clip80"

    def open(self, where: Path, *, split: str | None = None, **options):
        """As `Benchmark.open`; a root that is one split itself needs no name for it."""
        if split is None and where.is_dir() and _class_folders(where):
            split = "all"
        return super().open(where, split=split, **options)

    def fits(self, root: Path) -> bool:
        return bool(self.splits(root))

    def splits(self, root: Path) -> list[str]:
        if _class_folders(root):
            return ["all"]
        return [name for name in ("train", "val") if _folder(root, name)]

    def items(self, root: Path, split: str) -> Sequence[Item]:
        labels = {label: at for at, label in enumerate(self._classes(root))}

        def make(entry: tuple[Path, int]) -> Item:
            path, label = entry
            key = str(path.relative_to(root))
            return Item(key, partial(decode, path, str(path)), label=partial(int, labels[label]))

        return Lazily(list(_labelled(root, split)), make)

    def names(self, root: Path, split: str) -> tuple[list[str], list[str]]:
        prompts = class_list("imagenet")
        often, ids = Counter(prompts), list(wordnet_ids())
        chosen = self._classes(root)
        names = [f"{prompts[at]} ({ids[at]})" if often[prompts[at]] > 1 else prompts[at] for at in chosen]
        return names, [prompts[at] for at in chosen]

    def answers(self, root: Path, split: str) -> list[int]:
        position = {label: at for at, label in enumerate(self._classes(root))}
        return [position[label] for label in _labels(root, split)]

    def _classes(self, root: Path) -> list[int]:
        """The labels of all splits, ascending, so that a class is the same one in each."""
        return sorted({label for split in self.splits(root) for label in _labels(root, split)})


def _labels(root: Path, split: str) -> list[int]:
    """The labels that are answers in a split, ascending."""
    folder = _folder(root, split)
    assert folder is not None
    known = [wordnet_ids()[name] for name in _class_folders(folder) if name in wordnet_ids()]
    return sorted(known) if known else list(range(len(wordnet_ids())))


def _folder(root: Path, split: str) -> Path | None:
    """Where the images of a split are."""
    candidates = [root] if split == "all" else [root / split, root / KAGGLE / split]
    solved = split == "val" and _solution(root) is not None
    return next((path for path in candidates if path.is_dir() and (solved or _class_folders(path))), None)


def _solution(root: Path) -> Path | None:
    """Kaggle's answers: beside ILSVRC/, or in it."""
    return next((path for path in (root / SOLUTION, root.absolute().parent / SOLUTION) if path.is_file()), None)


def _class_folders(root: Path) -> list[str]:
    """Names of the folders that are classes, sorted."""
    with os.scandir(root) as found:  # knows which are folders without asking each
        return sorted(entry.name for entry in found if _label(entry.name) is not None and entry.is_dir())


def _label(name: str) -> int | None:
    if name in wordnet_ids():
        return wordnet_ids()[name]
    return int(name) if name.isdigit() and int(name) < len(wordnet_ids()) else None


def _labelled(root: Path, split: str) -> Iterator[tuple[Path, int]]:
    """Images of a split and their labels of the 1,000."""
    folder = _folder(root, split)
    assert folder is not None
    names = _class_folders(folder)
    for name in names:
        label = _label(name)
        assert label is not None
        yield from ((path, label) for path in list_images(folder / name))
    if not names:
        yield from _solved(root, folder)


def _solved(root: Path, folder: Path) -> Iterator[tuple[Path, int]]:
    """Kaggle's flat folder: rows `ImageId,PredictionString`, the latter `n01440764 x y x y ...`."""
    file = _solution(root)
    assert file is not None
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            label = wordnet_ids().get(row["PredictionString"].split()[0])
            if label is None:
                raise UserError(f"{file}: '{row['PredictionString']}' begins with no WordNet id of ImageNet-1k.")
            yield require_file(folder / f"{row['ImageId']}.JPEG", "image"), label
