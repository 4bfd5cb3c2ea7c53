"""The embedded scenes as an evaluation dataset: masks, depth, normals, three kinds of captions, one label an image."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from distill.config.schema import ScenesConfig
from distill.data.sample import Sample
from distill.data.scenes import THINGS, SceneSource
from distill.data.scenes.source import MAX_SIZE, MIN_SIZE
from distill.errors import UserError
from distill.evals.datasets.base import CAPTIONS, DEPTH, LABELS, MASKS, NORMALS, TRAIN, EvalDataset, Item
from distill.evals.datasets.source import source_item

DEFAULT_SAMPLES = 512
CACHED_PIXELS = 1 << 25  # 4 bytes each
CAPTION_FIELD = "synthetic"  # one true sentence; web captions are noisy on purpose


def open_scenes(
    side: int | None = None,
    *,
    samples: int | None = None,
    size: int | None = None,
    split: str = "test",
    field: str | None = None,
) -> EvalDataset:
    """`samples` scenes (None: 512) rendered at `side` pixels (None: `size`, or 64), evaluated at `size` (None: `side`).

    The image's label is its dominant thing: the class of thing, not of ground, with the most pixels (the first in
    class order among equals; None where no thing is visible). Depth is in image sides, at most 8.
    The test split never overlaps training scenes.
    """
    render = side or size or ScenesConfig().size
    if not MIN_SIZE <= render <= MAX_SIZE:
        raise UserError(
            f"Scenes cannot be rendered at {render} pixels. Allowed: {MIN_SIZE} to {MAX_SIZE}. Write scenes:PIXELS, "
            f"such as scenes:64; images are then resized to the size that is asked for."
        )
    source = scene_source(render, samples or DEFAULT_SAMPLES, split)
    flat, length = source_item(source, None, partial(dominant_thing, source.classes))

    def item(index: int) -> Item:
        return replace(
            flat(index),
            depth=lambda: source.geometry(index)[0],
            normals=lambda: source.geometry(index)[1],
        )

    dataset = EvalDataset(
        name=f"scenes:{render} {split}",
        size=size or render,
        item=item,
        length=length,
        has=frozenset({MASKS, CAPTIONS, LABELS, DEPTH, NORMALS}),
        class_names=list(source.classes),
        label_classes=[at for at, name in enumerate(source.classes) if name in THINGS],
        prompts="plain",
        caption_fields=list(source[0].captions),
        caption_field=field or CAPTION_FIELD,
        depth_unit="image sides",
    )
    if split != "train":
        dataset.has |= {TRAIN}
        dataset.open_train = partial(open_scenes, side, samples=samples, size=size, split="train", field=field)
    return dataset


@lru_cache(maxsize=4)
def scene_source(side: int, count: int, split: str) -> SceneSource:
    """Scenes kept between evaluations, with their pixels where these are few: a run is evaluated many times on them."""
    cache = side * side * count <= CACHED_PIXELS
    return SceneSource(ScenesConfig(size=side, count=count, cache=cache), split, dense=False)


def dominant_thing(classes: list[str], sample: Sample) -> int | None:
    """The class index of the thing with the most pixels in the sample's mask."""
    assert sample.mask is not None
    pixels = np.bincount(sample.mask.ravel(), minlength=len(classes))[: len(classes)]
    pixels = np.where([name in THINGS for name in classes], pixels, 0)
    return int(pixels.argmax()) if pixels.any() else None
