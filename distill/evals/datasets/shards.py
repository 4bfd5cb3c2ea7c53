"""Webdataset tars as an evaluation dataset."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distill.data.shards import ShardSource, expand_shards, is_remote
from distill.errors import UserError
from distill.evals.datasets.base import MASKS, TRAIN, EvalDataset
from distill.evals.datasets.contents import look_at_files
from distill.evals.datasets.files import read_classes
from distill.evals.datasets.source import contents, source_item


def open_shards(
    pattern: str, *, train: str | None = None, samples: int | None = None, size: int = 224, field: str | None = None
) -> EvalDataset:
    """The samples of local tars (glob or brace range). Masks need a `classes.json` in the first tar's folder.

    Raises UserError for missing tars, and for pipes and urls, which evaluation cannot read in any order.
    """
    shards = expand_shards(pattern)
    if any(is_remote(shard) for shard in shards):
        raise UserError(f"Evaluation needs local tars, not '{pattern}'. Download them and give their path.")
    source = ShardSource(shards, masks=True)
    has, fields = contents(source)
    names = Path(shards[0]).parent / "classes.json"
    classes, prompts, ignore = read_classes(names) if names.is_file() else ([], [], 255)
    if not classes:
        has -= {MASKS}
    item, length = source_item(source, samples)
    dataset = EvalDataset(
        name=f"shards:{Path(shards[0]).parent.name}",
        size=size,
        item=item,
        length=length,
        has=has,
        class_names=classes,
        prompt_names=prompts,
        ignore=ignore,
        caption_fields=fields,
        caption_field=field,
        looks=partial(look_at_files, [Path(shard) for shard in shards]),
    )
    if train is not None:
        dataset.has |= {TRAIN}
        dataset.open_train = partial(open_shards, train, samples=samples, size=size, field=field)
    return dataset
