"""UnED (`uned:data`), instance retrieval in eight domains, with the published splits.

    info_files/DOMAIN/test.json                   the queries: [{"path": ..., "class_id": ...}, ...]
    info_files/DOMAIN/index.json                  what they are looked up in (inshop, met, gldv2)
    images/                                       what the paths are relative to

Domains: cars, food2k, gldv2, inat, inshop, met, rp2k, sop; those whose `test.json` is there are taken. A domain
without an index is its own: its queries are looked up among each other. Classes are named DOMAIN/ID. `class_id` may be
a list: a neighbour with any of these ids is right, as the official evaluator has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from distill.errors import UserError
from distill.evals.datasets.assemble import Lazily
from distill.evals.datasets.base import Item
from distill.evals.datasets.benchmark import Benchmark
from distill.evals.datasets.files import decode, read_json

DOMAINS = ("cars", "food2k", "gldv2", "inat", "inshop", "met", "rp2k", "sop")
SPLITS = ("test", "index")
Entry = tuple[str, str, list[str]]  # domain, path, classes


class UnEd(Benchmark):
    kind = "uned"
    expected = "info_files/DOMAIN/test.json (DOMAIN one of " + ", ".join(DOMAINS) + ") and images/"
    inside = ("data",)
    split, fitted = "test", "index"

    def fits(self, root: Path) -> bool:
        return (root / "images").is_dir() and "test" in self.splits(root)

    def splits(self, root: Path) -> list[str]:
        return [split for split in SPLITS if any(_file(root, domain, split).is_file() for domain in DOMAINS)]

    def items(self, root: Path, split: str) -> Sequence[Item]:
        labels = {name: at for at, name in enumerate(self.names(root, split)[0])}

        def make(entry: Entry) -> Item:
            domain, path, names = entry
            image = root / "images" / path
            first, *also = (labels[f"{domain}/{name}"] for name in names)
            read = partial(decode, image, str(image))
            return Item(path, read, label=partial(int, first), domain=domain, also=tuple(also))

        return Lazily(_entries(root, split), make)

    def names(self, root: Path, split: str) -> tuple[list[str], list[str]]:
        """The classes of all splits, so that a label means the same in each."""
        names = sorted(
            {f"{domain}/{name}" for part in SPLITS for domain, _, ids in _entries(root, part) for name in ids}
        )
        return names, names


def _file(root: Path, domain: str, split: str) -> Path:
    return root / "info_files" / domain / f"{split}.json"


def _entries(root: Path, split: str) -> list[Entry]:
    files = {domain: _file(root, domain, split) for domain in DOMAINS}
    return [entry for domain, file in files.items() if file.is_file() for entry in _read(domain, file)]


def _read(domain: str, file: Path) -> list[Entry]:
    try:
        return [(domain, row["path"], _ids(row["class_id"])) for row in read_json(file)]
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{file}: {error}. It must be a list of objects with path and class_id.") from error


def _ids(class_id: str | int | list) -> list[str]:
    """One id or several, each once."""
    ids = list(dict.fromkeys(map(str, class_id if isinstance(class_id, list) else [class_id])))
    if not ids:
        raise ValueError("a class_id is an empty list")
    return ids
