"""Evaluation datasets, opened from one string: `KIND[:WHERE][?option=value&...]`.

    scenes              the embedded procedural world's test split (`scenes:128` renders at 128 px)
    shards:PATTERN      webdataset tars with captions, and masks if a `classes.json` beside them names the values
    folder:PATH         images with masks, captions.jsonl, or class folders (`distill.evals.datasets.layouts`)

Options: `split=NAME` (folder), `train=NAME` (folder: the split probes are fitted on; shards: a pattern of other tars),
`field=NAME` (the caption field that retrieval uses).
"""

from __future__ import annotations

from pathlib import Path

from distill.errors import UserError, unknown
from distill.evals.datasets.base import EvalDataset
from distill.evals.datasets.folder import open_folder
from distill.evals.datasets.scenes import open_scenes
from distill.evals.datasets.shards import open_shards

KINDS = ("scenes", "shards", "folder")
OPTIONS = {"scenes": ("field",), "shards": ("train", "field"), "folder": ("split", "train", "field")}
DEFAULT_SIZE = 224

__all__ = ["EvalDataset", "open_dataset"]


def open_dataset(
    spec: str, *, samples: int | None = None, size: int | None = None, split: str | None = None
) -> EvalDataset:
    """Opens `spec` (see the module's docstring).

    samples: how many images, evenly spread over the split (None: all; scenes: 512); the train split gets as many.
    size: pixels the short side is resized to (None: 224; scenes: their own size).
    split: as `?split=`; None takes test, else val.
    Raises UserError for an unknown kind or option, and for what is missing at the path.
    """
    kind, where, options = parse(spec)
    _check(spec, samples, size)
    split = options.get("split", split)
    field = options.get("field")
    if kind == "scenes":
        dataset = open_scenes(_side(where), samples=samples, size=size, split=split or "test", field=field)
    elif kind == "shards":
        train = options.get("train")
        dataset = open_shards(where, train=train, samples=samples, size=size or DEFAULT_SIZE, field=field)
    else:
        dataset = open_folder(
            Path(where).expanduser(),
            split=split,
            train=options.get("train"),
            samples=samples,
            size=size or DEFAULT_SIZE,
            field=field,
        )
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


def _check(spec: str, samples: int | None, size: int | None) -> None:
    for name, value in (("samples", samples), ("size", size)):
        if value is not None and value < 1:
            raise UserError(f"{name} = {value} for the dataset '{spec}': it must be at least 1.")
