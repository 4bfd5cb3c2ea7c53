"""COCO-Stuff (`coco_stuff`, 171 classes) and COCO-Object (`coco_object`, 80 things and background), of 2017.

    val2017/*.jpg, train2017/*.jpg               or below images/
    stuffthingmaps/val2017/*.png                 COCO-Stuff's pixel maps: COCO's category id minus 1; or in annotations/
    annotations/instances_val2017.json           COCO-Object is drawn from these where there are no pixel maps

The 91 things and 91 stuff categories have 11 gaps; the rest, in order, are the 171 classes. 255 is not scored.
COCO-Object from pixel maps, as GroupViT and TCL do it: things are classes 1 to 80, all else (255 too) is background.
From annotations: things are painted from large to small, crowds are not scored, all else is background; needs
pycocotools (`pip install 'everypatch[evals]'`).
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.evals.class_names import class_list
from distill.evals.datasets.base import Item
from distill.evals.datasets.benchmark import IGNORE, Benchmark
from distill.evals.datasets.files import decode, list_images, read_json, read_mask, require_file
from distill.evals.datasets.labels import mapped

SPLITS = ("train2017", "val2017")
GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # pixel values (category id - 1) without a class
STUFF = {value: at for at, value in enumerate(v for v in range(182) if v not in GAPS)}
THINGS = {value: at + 1 for value, at in STUFF.items() if value <= 90}
OBJECT = {**dict.fromkeys(STUFF, 0), **THINGS, IGNORE: 0}
CATEGORY = {value + 1: label for value, label in THINGS.items()}  # COCO's category id -> class of COCO-Object


def image_folder(root: Path, split: str) -> Path | None:
    """Where the split's images are."""
    return next((path for path in (root / split, root / "images" / split) if path.is_dir()), None)


def pixel_maps(root: Path, split: str) -> Path | None:
    """Where the split's pixel maps are."""
    folders = (root / "stuffthingmaps" / split, root / "annotations" / split)
    return next((path for path in folders if path.is_dir()), None)


class CocoStuff(Benchmark):
    kind = "coco_stuff"
    expected = "val2017/ (or images/val2017/) and stuffthingmaps/val2017/ (or annotations/val2017/)"
    split, fitted, size = "val2017", "train2017", 448
    classes = STUFF

    def fits(self, root: Path) -> bool:
        return bool(self.splits(root))

    def splits(self, root: Path) -> list[str]:
        return [name for name in SPLITS if image_folder(root, name) and pixel_maps(root, name)]

    def items(self, root: Path, split: str) -> list[Item]:
        images, maps = image_folder(root, split), pixel_maps(root, split)
        assert images is not None and maps is not None
        return [
            Item(
                key=path.stem,
                image=partial(decode, path, str(path)),
                mask=partial(self._mask, require_file(maps / f"{path.stem}.png", "mask")),
            )
            for path in list_images(images)
        ]

    def _mask(self, path: Path) -> np.ndarray:
        return mapped(read_mask(path), self.classes, path)

    def names(self, root: Path, split: str) -> tuple[list[str], list[str]]:
        return list(class_list(self.kind)), list(class_list(self.kind))


class CocoObject(CocoStuff):
    kind = "coco_object"
    expected = "val2017/ (or images/val2017/), and stuffthingmaps/val2017/ or annotations/instances_val2017.json"
    classes = OBJECT

    def splits(self, root: Path) -> list[str]:
        return [n for n in SPLITS if image_folder(root, n) and (pixel_maps(root, n) or _instances(root, n).is_file())]

    def items(self, root: Path, split: str) -> list[Item]:
        if pixel_maps(root, split):
            return super().items(root, split)
        folder = image_folder(root, split)
        assert folder is not None
        file = _instances(root, split)
        content = read_json(file)
        drawn: dict[int, list[dict]] = defaultdict(list)
        for note in content["annotations"]:
            drawn[note["image_id"]].append(note)
        return [self._drawn(folder, file, image, drawn[image["id"]]) for image in content["images"]]

    def _drawn(self, folder: Path, file: Path, image: dict, notes: list[dict]) -> Item:
        """notes: the image's annotations in `file`."""
        path = require_file(folder / image["file_name"], "image")
        return Item(
            key=path.stem,
            image=partial(decode, path, str(path)),
            mask=partial(paint, notes, image["height"], image["width"]),
            files=(file,),
        )


def _instances(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def paint(notes: list[dict], height: int, width: int) -> np.ndarray:
    """COCO annotations -> classes of COCO-Object `[height, width]`: crowds first, then things from large to small."""
    tools = _tools()
    mask = np.zeros((height, width), np.uint8)
    for note in sorted(notes, key=lambda n: (not n.get("iscrowd", 0), -n["area"], n["id"])):
        label = IGNORE if note.get("iscrowd", 0) else CATEGORY.get(note["category_id"])
        if label is None:
            raise UserError(
                f"Annotation {note['id']} has category {note['category_id']}, which is none of COCO's 80 things. "
                f"Give COCO's own instances file."
            )
        mask[_region(tools, note["segmentation"], height, width)] = label
    return mask


def _region(tools: Any, segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons, or a run-length code, as a boolean `[height, width]`."""
    if isinstance(segmentation, list):
        code = tools.merge(tools.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = tools.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    return tools.decode(code).astype(bool)


def _tools() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError(
            "COCO-Object from annotations needs pycocotools: pip install 'everypatch[evals]', or give COCO-Stuff's "
            "pixel maps in stuffthingmaps/."
        ) from None
    return mask
