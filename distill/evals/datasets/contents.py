"""What is in a split, as digests: so that a number is not taken for one that was measured on other images.

`contents` is of what is the same wherever the data lies: class names, every image's labels and captions, the sizes of
its files. `files` is of the rest: the images' names, the paths of their files and when these were changed. No file is
read: it costs the listing of the split (about 15 s for ImageNet's train split) and one `stat` for each file looked at,
a second at most, or some tens of seconds on a network's disk.

Not noticed are: a file that was changed but has its old size and time; and in splits of more than LOOKED_AT images,
of which so many are looked at, evenly spread, a change that leaves these and the number of images as they were. Of
shards every tar is looked at. Scenes are drawn by the code: their name and number say all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from distill.evals.datasets.base import EvalDataset, Item, spread

LOOKED_AT = 5_000  # images of a split
Stamp = tuple[int, int]  # a file's size in bytes and the time of its last change in nanoseconds


def seen(dataset: EvalDataset) -> dict[str, Any]:
    """Name, number of images and the digests `contents` and `files` (SHA-256, hex) of a split; looked at once."""
    if dataset.seen is None:
        contents, files = hashlib.sha256(), hashlib.sha256()
        contents.update(_line([dataset.class_names, dataset.prompt_names, dataset.label_classes, dataset.ignore]))
        for what, where in dataset.looks(dataset) if dataset.looks is not None else ():
            contents.update(_line(what))
            files.update(_line(where))
        digests = {"contents": contents.hexdigest(), "files": files.hexdigest()}
        dataset.seen = {"name": dataset.name, "images": len(dataset), **digests}
    return dataset.seen


def look_at_images(dataset: EvalDataset) -> Iterator[tuple[Any, Any]]:
    """Of at most LOOKED_AT images, what goes into `contents` and what into `files`."""
    stamp = cache(_stamp)  # many images may come from one file
    for index in spread(len(dataset), LOOKED_AT):
        item = dataset.item(index)
        paths = files_of(item)
        label = None if item.label is None else item.label()
        sizes = [stamp(path)[0] for path in paths]
        yield (
            [label, *item.also, item.domain, item.captions, sizes],
            [item.key, [(str(path.absolute()), stamp(path)[1]) for path in paths]],
        )


def look_at_files(paths: Sequence[Path], dataset: EvalDataset) -> Iterator[tuple[Any, Any]]:
    """The same of `paths`, where images are not files of their own."""
    for path in paths:
        size, changed = _stamp(path)
        yield [path.name, size], [str(path.absolute()), changed]


def files_of(item: Item) -> list[Path]:
    """The files that an image and its labels are read from: those its loaders are partials over, and `Item.files`."""
    loaders = (item.image, item.mask, item.depth, item.normals)
    return list(dict.fromkeys([*(path for loader in loaders for path in _paths(loader)), *item.files]))


def _paths(loader: Callable | Any) -> Iterable[Path]:
    if isinstance(loader, Path):
        yield loader
    elif isinstance(loader, partial):
        for part in (loader.func, *loader.args, *loader.keywords.values()):
            yield from _paths(part)


def _stamp(path: Path) -> Stamp:
    """-1 for a file that is not there: loading it says what is wrong."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _line(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, default=str).encode() + b"\n"
