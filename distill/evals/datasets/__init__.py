"""Evaluation datasets, opened from one string: `KIND[:WHERE][?option=value&...]`.

    scenes              the embedded procedural world's test split (`scenes:128` renders at 128 px)
    shards:PATTERN      webdataset tars with captions, and masks if a `classes.json` beside them names the values
    folder:PATH         images with masks, depth or normals, captions.jsonl, or class folders (`...datasets.layouts`)
    csv:FILE jsonl:FILE images and captions listed in a table (`...datasets.tables`)
    ade20k:PATH ...     a benchmark in the layout its publishers ship (`...datasets.catalogue`, one file each)

Options: `split=NAME` (folder, tables, benchmarks), `train=NAME` (folder, benchmarks: the split probes are fitted on;
shards: a pattern of other tars), `field=NAME` (the caption field that retrieval uses), `image=COLUMN` and
`images=FOLDER` (tables).
"""

from __future__ import annotations

from pathlib import Path

from distill.errors import UserError, unknown
from distill.evals.datasets.base import EvalDataset
from distill.evals.datasets.catalogue import BENCHMARKS
from distill.evals.datasets.folder import open_folder
from distill.evals.datasets.scenes import open_scenes
from distill.evals.datasets.shards import open_shards
from distill.evals.datasets.tables import open_table

TABLES = ("csv", "jsonl")
KINDS = ("scenes", "shards", "folder", *TABLES, *BENCHMARKS)
FOLDER_OPTIONS = ("split", "train", "field")
OPTIONS = {
    "scenes": ("field",),
    "shards": ("train", "field"),
    "folder": FOLDER_OPTIONS,
    **dict.fromkeys(TABLES, ("split", "field", "image", "images")),
    **dict.fromkeys(BENCHMARKS, FOLDER_OPTIONS),
}
DEFAULT_SIZE = 224

__all__ = ["EvalDataset", "open_dataset"]


def open_dataset(
    spec: str, *, samples: int | None = None, size: int | None = None, split: str | None = None
) -> EvalDataset:
    """Opens `spec` (see the module's docstring).

    samples: how many images, evenly spread over the split (None: all; scenes: 512); the train split gets as many.
    size: pixels of the short side (None: 224; scenes: their own size; segmentation and depth benchmarks: 448).
    split: as `?split=`; None takes test, else val.
    Raises UserError for an unknown kind or option, and for what is missing at the path.
    """
    kind, where, options = parse(spec)
    check_limits(spec, samples, size)
    chosen: dict[str, str | None] = {"split": split, "field": None, **options}
    field, path = chosen["field"], Path(where).expanduser()
    if kind == "scenes":
        scenes_split = chosen["split"] or "test"
        dataset = open_scenes(_side(where), samples=samples, size=size, split=scenes_split, field=field)
    elif kind == "shards":
        train = options.get("train")
        dataset = open_shards(where, train=train, samples=samples, size=size or DEFAULT_SIZE, field=field)
    elif kind == "folder":
        dataset = open_folder(path, **chosen, samples=samples, size=size or DEFAULT_SIZE)
    elif kind in TABLES:
        dataset = open_table(kind, path, **chosen, samples=samples, size=size or DEFAULT_SIZE)
    else:
        dataset = BENCHMARKS[kind].open(path, **chosen, samples=samples, size=size)
    if field is not None and dataset.caption_fields and field not in dataset.caption_fields:
        raise unknown(f"caption field of {dataset.name}", field, dataset.caption_fields)
    return dataset


def parse(spec: str) -> tuple[str, str, dict[str, str]]:
    """`kind`, `where` and options of a dataset string; UserError for what it does not know."""
    head, _, query = spec.partition("?")
    kind, _, where = head.partition(":")
    if kind not in KINDS:
        raise unknown("kind of dataset", kind, KINDS, "Write KIND:PATH, such as folder:/data/photos.")
    if not where and kind != "scenes":
        raise UserError(f"The dataset '{spec}' names no path. Write {kind}:PATH.")
    options = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if name not in OPTIONS[kind]:
            raise unknown(f"option of the dataset '{kind}'", name, OPTIONS[kind])
        if not equals or not value:
            raise UserError(f"The dataset option '{part}' has no value. Write {name}=VALUE.")
        options[name] = value
    return kind, where, options


def _side(where: str) -> int | None:
    if not where:
        return None
    if not where.isdigit():
        raise UserError(f"'scenes:{where}' is no size. Write scenes or scenes:PIXELS, such as scenes:64.")
    return int(where)


def check_limits(spec: str, samples: int | None, size: int | None) -> None:
    """UserError for a number of samples, or a size, that no dataset can have."""
    for name, value in (("samples", samples), ("size", size)):
        if value is not None and value < 1:
            raise UserError(f"{name} = {value} for the dataset '{spec}': it must be at least 1.")
