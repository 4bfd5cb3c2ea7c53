"""Evaluation data from a `distill.data` source: the scenes, and webdataset shards."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from distill.data.sample import Sample, SampleError, Source
from distill.errors import UserError
from distill.evals.datasets.base import CAPTIONS, MASKS, Item, spread
from distill.evals.datasets.files import decode


def read(source: Source, index: int) -> Sample:
    """The sample at `index`. An evaluation set must be whole, so an unreadable sample is a UserError."""
    try:
        return source[index]
    except SampleError as error:
        raise UserError(f"Unreadable evaluation sample: {error}. Repair or remove it.") from error


def pixels(sample: Sample) -> Image.Image:
    """RGB image of a sample, turned upright where it carries an EXIF orientation."""
    if isinstance(sample.image, np.ndarray):
        return Image.fromarray(sample.image)
    return decode(io.BytesIO(sample.image), f"{sample.shard}: {sample.key}")


def source_item(
    source: Source, samples: int | None, label: Callable[[Sample], int | None] | None = None
) -> tuple[Callable[[int], Item], int]:
    """`item` and `length` for an EvalDataset over `samples` evenly spread samples of `source`."""
    chosen = spread(len(source), samples)

    def item(index: int) -> Item:
        sample = read(source, chosen[index])
        return Item(
            key=f"{sample.shard}: {sample.key}",
            image=partial(pixels, sample),
            mask=None if sample.mask is None else partial(np.asarray, sample.mask),
            captions=sample.captions,
            label=None if label is None else partial(label, sample),
        )

    return item, len(chosen)


def contents(source: Source) -> tuple[frozenset[str], list[str]]:
    """What the first sample has (MASKS, CAPTIONS), and its caption fields. A source is expected to be uniform."""
    first = read(source, 0)
    has = {MASKS} if first.mask is not None else set()
    if first.captions:
        has.add(CAPTIONS)
    return frozenset(has), list(first.captions)
