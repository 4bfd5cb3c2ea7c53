"""Images and captions listed in a CSV or JSONL file (`csv:FILE`, `jsonl:FILE`), for retrieval.

The same files that `distill data pack` reads: an image column and one or more caption columns, a row an image or a row
a caption (rows of one image are joined, so that an image may have several captions). Options: `image=COLUMN` where it
is not called image, filename, filepath, ...; `field=COLUMN` the captions, where there are several such columns;
`split=NAME` rows whose column `split` says so; `images=FOLDER` that the paths are relative to (default: the file's).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distill.data.records import Reading, Record, read_records
from distill.errors import UserError
from distill.evals.datasets.assemble import assemble
from distill.evals.datasets.base import EvalDataset, Item
from distill.evals.datasets.files import decode, require_file


def open_table(
    kind: str,
    file: Path,
    *,
    split: str | None = None,
    image: str | None = None,
    images: str | None = None,
    field: str | None = None,
    samples: int | None = None,
    size: int = 224,
) -> EvalDataset:
    """The images that `file` lists; see the module. Raises UserError for a bad line, and for a missing image."""
    names = {field: field} if field is not None else {}
    records, bad = read_records(file, kind, Reading(image_field=image, caption_fields=names, split=split))
    if bad:
        raise UserError(f"{file} has {len(bad)} unreadable lines. The first: {bad[0]}. Correct or remove them.")
    folder = Path(images).expanduser() if images else file.parent
    items = [_item(folder, record) for record in records if any(record.captions.values())]
    if not items:
        raise UserError(f"{file} lists no image with a caption. Name the caption column with ?field=COLUMN.")
    fields = list(dict.fromkeys(name for item in items for name in item.captions or {}))
    return assemble(
        f"{kind}:{file.name}{' ' + split if split else ''}",
        items,
        samples,
        size,
        caption_fields=fields,
        caption_field=field,
    )


def _item(folder: Path, record: Record) -> Item:
    path = require_file(folder / record.image, "image")
    return Item(key=record.image, image=partial(decode, path, str(path)), captions=record.captions)
