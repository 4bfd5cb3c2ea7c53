"""ADE20K-150 (`ade20k:ADEChallengeData2016`), the scene parsing challenge of 2016.

    images/{training,validation}/*.jpg
    annotations/{training,validation}/*.png     0 = not labelled, 1 to 150 = the classes

Label 0 is not scored; the others move down by one. Names: the first synonym of each class, those of TIPSv2's notebook.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from distill.evals.class_names import class_list
from distill.evals.datasets.base import Item
from distill.evals.datasets.benchmark import Benchmark
from distill.evals.datasets.files import decode, list_images, read_mask, require_file
from distill.evals.datasets.labels import without_zero


class Ade20k(Benchmark):
    kind = "ade20k"
    expected = "images/validation/ and annotations/validation/"
    inside = ("ADEChallengeData2016",)
    split, fitted, size = "validation", "training", 448

    def fits(self, root: Path) -> bool:
        return bool(self.splits(root))

    def splits(self, root: Path) -> list[str]:
        names = ("training", "validation")
        return [n for n in names if (root / "images" / n).is_dir() and (root / "annotations" / n).is_dir()]

    def items(self, root: Path, split: str) -> list[Item]:
        return [
            Item(
                key=path.stem,
                image=partial(decode, path, str(path)),
                mask=partial(read_label, require_file(root / "annotations" / split / f"{path.stem}.png", "mask")),
            )
            for path in list_images(root / "images" / split)
        ]

    def names(self, root: Path, split: str) -> tuple[list[str], list[str]]:
        return list(class_list("ade20k")), list(class_list("ade20k"))


def read_label(path: Path) -> np.ndarray:
    """The mask `[H, W]` with 255 where it is not labelled."""
    return without_zero(read_mask(path))
