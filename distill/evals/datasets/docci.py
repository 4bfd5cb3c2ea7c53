"""DOCCI (`docci:ROOT`): photographs with one long description each, for retrieval.

    docci_descriptions.jsonlines        a JSON object a line: split, image_file, description, ...
    images/*.jpg

Splits: train, test (5,000 images, the default), qual_dev and qual_test. Descriptions are longer than most text towers
read: the rest is cut by the tokenizer, in the paper too.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from distill.errors import UserError
from distill.evals.datasets.base import Item
from distill.evals.datasets.benchmark import Benchmark
from distill.evals.datasets.files import decode, require_file

FILE = "docci_descriptions.jsonlines"
FIELD = "description"


class Docci(Benchmark):
    kind = "docci"
    expected = f"{FILE} and images/"
    split, fitted, field = "test", "train", FIELD

    def fits(self, root: Path) -> bool:
        return (root / FILE).is_file() and (root / "images").is_dir()

    def splits(self, root: Path) -> list[str]:
        return sorted({row["split"] for row in _rows(root / FILE)})

    def items(self, root: Path, split: str) -> list[Item]:
        return [self._item(root, row) for row in _rows(root / FILE) if row["split"] == split]

    def _item(self, root: Path, row: dict) -> Item:
        path = require_file(root / "images" / row["image_file"], "image")
        return Item(key=path.stem, image=partial(decode, path, str(path)), captions={FIELD: [row["description"]]})


def _rows(file: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({name: row[name] for name in ("split", "image_file", "description")})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}: {error}. Each line is an object with split, image_file and description."
            ) from error
    return rows
