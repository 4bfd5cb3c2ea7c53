"""COCO and Flickr30k with Karpathy's splits (`coco_karpathy`, `flickr30k`), for retrieval.

    dataset_coco.json, val2014/*.jpg, train2014/*.jpg            COCO: 5,000 test images; folders also below images/
    dataset_flickr30k.json, flickr30k-images/*.jpg               Flickr30k: 1,000 test images; or images/

All sentences of an image take part, five for nearly all. COCO's `restval` belongs to its train split.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from distill.errors import UserError
from distill.evals.datasets.base import Item
from distill.evals.datasets.benchmark import Benchmark
from distill.evals.datasets.files import decode, entries, read_json

FIELD = "caption"


class Karpathy(Benchmark):
    split, fitted, field = "test", "train", FIELD

    def __init__(self, kind: str, file: str, folders: tuple[str, ...], expected: str):
        self.kind, self.file, self.folders, self.expected = kind, file, folders, expected

    def fits(self, root: Path) -> bool:
        return (root / self.file).is_file()

    def splits(self, root: Path) -> list[str]:
        return sorted({_split(row) for row in self._rows(root)})

    def items(self, root: Path, split: str) -> list[Item]:
        return [self._item(root, row) for row in self._rows(root) if _split(row) == split]

    def _rows(self, root: Path) -> list[dict]:
        content = read_json(root / self.file)
        rows = content.get("images") if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "filename" in row for row in rows):
            raise UserError(f'{root / self.file} is not Karpathy\'s file: it has no "images" with "filename".')
        for number, row in enumerate(rows, 1):
            _check(row, f"{root / self.file}, image {number} ({row['filename']})")
        return rows

    def _item(self, root: Path, row: dict) -> Item:
        name = Path(row.get("filepath", "")) / row["filename"]
        places = [root / folder / name for folder in self.folders]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            where = " or ".join(str(place.parent) for place in places)
            raise UserError(f"The image {name} of {self.file} is missing in {where}. Found in {root}: {entries(root)}.")
        texts = [sentence["raw"] for sentence in row["sentences"]]
        return Item(key=row["filename"], image=partial(decode, path, str(path)), captions={FIELD: texts})


def _check(row: dict, where: str) -> None:
    """Raises UserError for a row without what is read of it."""
    for name in ("filename", "split"):
        if not isinstance(row.get(name), str):
            raise UserError(f"{where}: {name} = {json.dumps(row.get(name))}; it must be a text.")
    given = row.get("sentences")
    texts = (
        [entry.get("raw") if isinstance(entry, dict) else None for entry in given]
        if isinstance(given, list)
        else [None]
    )
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f'{where}: sentences = {json.dumps(given)}; it must be a list [{{"raw": "A dog runs."}}, ...].')


def _split(row: dict) -> str:
    return "train" if row["split"] == "restval" else row["split"]


KARPATHY = (
    Karpathy("coco_karpathy", "dataset_coco.json", ("", "images"), "dataset_coco.json and val2014/"),
    Karpathy(
        "flickr30k",
        "dataset_flickr30k.json",
        ("flickr30k-images", "images", "flickr30k_images"),
        "dataset_flickr30k.json and flickr30k-images/",
    ),
)
