"""Pascal VOC 2012 (`voc20`, `voc21`) and Context (`pascal_context59`, `pascal_context60`), in VOCdevkit's layout.

    JPEGImages/*.jpg
    ImageSets/Segmentation/{train,val,trainval}.txt              VOC: stems, one a line
    SegmentationClass/*.png                                      0 = background, 1 to 20 = things, 255 = border
    SegmentationClassAug/*.png                                   for the split trainaug, where it is there
    ImageSets/SegmentationContext/{train,val}.txt                Context, as mmsegmentation converts it
    SegmentationClassContext/*.png                               0 = background, 1 to 59 = the classes

The root may be VOCdevkit or the year's folder in it (VOC2012; VOC2010 for Context). `voc20` and `pascal_context59` do
not score the background; `voc21` and `pascal_context60` have it as class 0. VOC's masks may also be colour-coded.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from distill.evals.class_names import class_list
from distill.evals.datasets.base import Item
from distill.evals.datasets.benchmark import IGNORE, Benchmark
from distill.evals.datasets.files import Colours, decode, read_mask, require_file
from distill.evals.datasets.labels import without_zero

BACKGROUND = "background"


class Pascal(Benchmark):
    """VOC and Context differ in folders and names only."""

    split, fitted, size = "val", "train", 448

    def __init__(self, kind: str, year: str, lists: str, masks: str, names: str, background: bool):
        self.kind, self.lists, self.masks, self.list, self.background = kind, lists, masks, names, background
        self.expected = f"JPEGImages/, {masks}/ and ImageSets/{lists}/val.txt"
        self.inside = (f"VOCdevkit/{year}", year)  # type: ignore[misc]

    def fits(self, root: Path) -> bool:
        return (root / "JPEGImages").is_dir() and (root / self.masks).is_dir() and bool(self.splits(root))

    def splits(self, root: Path) -> list[str]:
        return sorted(path.stem for path in (root / "ImageSets" / self.lists).glob("*.txt"))

    def items(self, root: Path, split: str) -> list[Item]:
        stems = (root / "ImageSets" / self.lists / f"{split}.txt").read_text(encoding="utf-8").split()
        folder = f"{self.masks}Aug" if split == "trainaug" else self.masks
        return [self._item(root, stem, folder) for stem in stems]

    def names(self, root: Path, split: str) -> tuple[list[str], list[str]]:
        names = [BACKGROUND] * self.background + list(class_list(self.list))
        return names, names

    def _item(self, root: Path, stem: str, folder: str) -> Item:
        image = require_file(root / "JPEGImages" / f"{stem}.jpg", "image")
        mask = require_file(root / folder / f"{stem}.png", "mask")
        return Item(key=stem, image=partial(decode, image, str(image)), mask=partial(self._mask, mask))

    def _mask(self, path: Path) -> np.ndarray:
        mask = read_mask(path, voc_colours(len(class_list(self.list)) + 1))
        return mask if self.background else without_zero(mask)


def voc_colours(count: int) -> Colours:
    """VOC's colours: bit b of the three channels comes from bits 3b, 3b + 1, 3b + 2 of the class, highest first."""
    colours = {}
    for value in (*range(count), IGNORE):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (value >> (3 * bit + channel) & 1) << (7 - bit)
        colours[channels[0], channels[1], channels[2]] = value
    return colours


VOC = ("VOC2012", "Segmentation", "SegmentationClass", "voc20")
CONTEXT = ("VOC2010", "SegmentationContext", "SegmentationClassContext", "pascal_context59")
PASCAL = (
    Pascal("voc20", *VOC, background=False),
    Pascal("voc21", *VOC, background=True),
    Pascal("pascal_context59", *CONTEXT, background=False),
    Pascal("pascal_context60", *CONTEXT, background=True),
)
