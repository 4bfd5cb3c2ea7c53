"""The pictures of a cell: the first test images, and what its model makes of their patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from distill.evals.datasets import EvalDataset, open_dataset
from distill.evals.datasets.base import MASKS
from distill.evals.features import Encoder
from distill.evals.pictures import palette, pca_maps, segmentation_panels
from distill.study.store import MANIFEST, write_json

COUNT = 6
ALPHA = 0.75  # share of the class's colour in a segmentation
SMALLEST = 8  # images that a dataset is asked for
PCA, FINAL, VALUE = "pca", "final", "value"
TITLES = {
    PCA: "PCA of the final patch features",
    FINAL: "Zero-shot segmentation, final tokens",
    VALUE: "Zero-shot segmentation, value path",
}


def draw_pictures(model: Encoder, dataset: str, size: int, folder: Path) -> None:
    """Write `KIND_NUMBER.png` for the first test images and pictures.json, which says what there is.

    Kinds: image, truth, and those of TITLES; without masks only image and pca. `size`: evaluation size in pixels.
    """
    opened = open_dataset(dataset, samples=SMALLEST, size=size)
    count = min(COUNT, len(opened))
    folder.mkdir(parents=True, exist_ok=True)
    images = [opened.image(i).convert("RGB") for i in range(count)]
    for number, (image, components) in enumerate(zip(images, pca_maps(model, images, size))):
        _save(folder, "image", number, np.array(image))
        _save(folder, PCA, number, components)
    kinds = {PCA: TITLES[PCA]}
    legend: list[dict[str, str]] = []
    if MASKS in opened.has:
        kinds = TITLES
        legend = _segment(model, opened, count, folder)
    write_json(folder / MANIFEST, {"images": count, "panels": kinds, "legend": legend})


def _segment(model: Encoder, dataset: EvalDataset, count: int, folder: Path) -> list[dict[str, str]]:
    """Draw truth and segmentations; returns name and colour of the classes that the truths hold."""
    seen: set[int] = set()
    for number, panel in enumerate(segmentation_panels(model, dataset, range(count), alpha=ALPHA)):
        _save(folder, "truth", number, panel.truth)
        _save(folder, FINAL, number, panel.final)
        _save(folder, VALUE, number, panel.value)
        seen |= {int(c) for c in np.unique(dataset.mask(number)) if c != dataset.ignore}
    colours = palette(len(dataset.class_names))
    return [{"name": dataset.class_names[c], "colour": "#{:02x}{:02x}{:02x}".format(*colours[c])} for c in sorted(seen)]


def _save(folder: Path, kind: str, number: int, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(folder / f"{kind}_{number}.png", optimize=True)
