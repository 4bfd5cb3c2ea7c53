"""Cityscapes (`cityscapes:ROOT`), 19 classes.

leftImg8bit/{train,val}/CITY/*_leftImg8bit.png
gtFine/{train,val}/CITY/*_gtFine_labelTrainIds.png           0 to 18, 255 = not scored
gtFine/{train,val}/CITY/*_gtFine_labelIds.png                the annotators' 0 to 33, where the first is missing
gtFine/{train,val}/CITY/*_gtFine_color.png                   colour-coded, where both are missing
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from distill.errors import UserError
from distill.evals.class_names import class_list
from distill.evals.datasets.base import Item
from distill.evals.datasets.benchmark import IGNORE, Benchmark
from distill.evals.datasets.files import Colours, decode, entries, read_mask
from distill.evals.datasets.labels import mapped

TRAIN_IDS = {  # the annotators' ids of the 19 classes, in their order
    label: at for at, label in enumerate((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33))
}
LABEL_IDS = 34
COLOURS: Colours = {
    colour: at
    for at, colour in enumerate(
        (
            (128, 64, 128),
            (244, 35, 232),
            (70, 70, 70),
            (102, 102, 156),
            (190, 153, 153),
            (153, 153, 153),
            (250, 170, 30),
            (220, 220, 0),
            (107, 142, 35),
            (152, 251, 152),
            (70, 130, 180),
            (220, 20, 60),
            (255, 0, 0),
            (0, 0, 142),
            (0, 0, 70),
            (0, 60, 100),
            (0, 80, 100),
            (0, 0, 230),
            (119, 11, 32),
        )
    )
}
UNSCORED: Colours = dict.fromkeys(  # void, ground, parking, rail track, guard rail, bridge, tunnel, caravan, trailer
    (
        (0, 0, 0),
        (111, 74, 0),
        (81, 0, 81),
        (250, 170, 160),
        (230, 150, 140),
        (180, 165, 180),
        (150, 100, 100),
        (150, 120, 90),
        (0, 0, 90),
        (0, 0, 110),
    ),
    IGNORE,
)


class Cityscapes(Benchmark):
    kind = "cityscapes"
    expected = "leftImg8bit/val/CITY/ and gtFine/val/CITY/"
    split, fitted, size = "val", "train", 448

    def fits(self, root: Path) -> bool:
        return bool(self.splits(root))

    def splits(self, root: Path) -> list[str]:
        names = ("train", "val")
        return [n for n in names if (root / "leftImg8bit" / n).is_dir() and (root / "gtFine" / n).is_dir()]

    def items(self, root: Path, split: str) -> list[Item]:
        images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        return [self._item(root, split, path) for path in images]

    def names(self, root: Path, split: str) -> tuple[list[str], list[str]]:
        return list(class_list("cityscapes")), list(class_list("cityscapes"))

    def _item(self, root: Path, split: str, image: Path) -> Item:
        stem = image.name.removesuffix("_leftImg8bit.png")
        folder = root / "gtFine" / split / image.parent.name
        for ending, read in READERS.items():
            mask = folder / f"{stem}_gtFine_{ending}.png"
            if mask.is_file():
                return Item(key=stem, image=partial(decode, image, str(image)), mask=partial(read, mask))
        raise UserError(
            f"The mask of {image} is missing. Expected in {folder}: {stem}_gtFine_ with one of "
            f"{', '.join(READERS)}. Found: {entries(folder)}."
        )


def from_label_ids(path: Path) -> np.ndarray:
    """Annotators' ids -> classes; ids without a class are not scored, larger numbers are an error."""
    return mapped(read_mask(path), {**dict.fromkeys(range(LABEL_IDS), IGNORE), **TRAIN_IDS}, path)


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "labelTrainIds": read_mask,
    "labelIds": from_label_ids,
    "color": partial(read_mask, colours={**COLOURS, **UNSCORED}),
}
