"""What a task may ask of a dataset, and the error when the dataset does not have it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.errors import UserError

MASKS, CAPTIONS, LABELS, TRAIN = "masks", "captions", "labels", "a train split"
DEPTH, NORMALS = "depth", "normals"

FIXES = {
    MASKS: "give a dataset with masks: scenes, folder:PATH with masks/ and classes.json, or shards with mask.png",
    CAPTIONS: "give a dataset with captions: scenes, shards, or folder:PATH with captions.jsonl",
    LABELS: "give a dataset with one class an image: scenes, or folder:PATH with <split>/<class>/*.jpg",
    DEPTH: "give a dataset with depth maps, such as scenes",
    NORMALS: "give a dataset with surface normals: scenes, navi:PATH, folder:PATH with normals/, or nyuv2:PATH with "
    "normal_*.npy (or .png) beside each rgb_*.jpg of official_splits/",
    TRAIN: "name the split to fit on: folder:PATH?train=SPLIT, or shards:PATH?train=OTHER_TARS",
}
UNIT = 0.02  # how far from 1 the length of a stored normal may be (8-bit files round)


@dataclass
class Item:
    """One image as a dataset stores it. The loaders are called when the value is asked for.

    A loader that reads a file is a `functools.partial` with its path among the arguments: so it is known which files a
    number depends on (`...datasets.contents`). What a loader reads besides is listed in `files`.
    """

    key: str  # for messages
    image: Callable[[], Image.Image]
    mask: Callable[[], np.ndarray] | None = None
    captions: dict[str, list[str]] | None = None
    label: Callable[[], int | None] | None = None
    depth: Callable[[], np.ndarray] | None = None
    normals: Callable[[], np.ndarray] | None = None
    domain: str | None = None  # in instance retrieval an image of another domain is never right
    also: tuple[int, ...] = ()  # further labels, which are as right as the first in instance retrieval
    files: tuple[Path, ...] = ()  # what it comes from, besides the paths among its loaders' arguments


@dataclass
class Example:
    """One image with its labels, loaded and checked."""

    index: int
    image: Image.Image  # RGB
    mask: np.ndarray | None  # integer [H, W], None unless asked for
    captions: dict[str, list[str]]
    label: int | None
    depth: np.ndarray | None = None  # float32 [H, W] in metres (scenes: image sides), 0 or NaN = invalid; as the mask
    normals: np.ndarray | None = None  # float32 [H, W, 3], unit (right, up, towards the viewer), zeros = invalid
    domain: str | None = None
    also: tuple[int, ...] = ()


@dataclass
class EvalDataset:
    """Images with whatever labels they have, in a fixed order. `image`, `mask`, `captions` and `label` take an index.

    `has` lists what is there: MASKS, CAPTIONS, LABELS, DEPTH, NORMALS, TRAIN. Asking for what is not raises UserError.
    """

    name: str  # for results and messages, such as "folder:/data/ccp val"
    size: int  # pixels the short side is resized to for the model
    item: Callable[[int], Item]
    length: int
    has: frozenset[str]
    class_names: list[str] = field(default_factory=list)  # of mask values, or of image labels
    prompt_names: list[str] = field(default_factory=list)  # what prompts say for each class (default: the class names)
    label_classes: list[int] = field(default_factory=list)  # what an image's label can be (default: every class)
    ignore: int = 255  # mask value that is not scored
    prompts: str = "tcl"  # prompt set used unless a task is given another
    caption_fields: list[str] = field(default_factory=list)
    caption_field: str | None = None  # the one retrieval uses unless told otherwise
    depth_unit: str = "m"
    open_train: Callable[[], EvalDataset] | None = None
    looks: Callable[[EvalDataset], Iterable[tuple[Any, Any]]] | None = None  # `...contents`; None: made by the code
    seen: dict[str, Any] | None = None  # what `contents.seen` found
    _train: EvalDataset | None = None

    def __post_init__(self) -> None:
        self.prompt_names = self.prompt_names or list(self.class_names)
        self.label_classes = self.label_classes or list(range(len(self.class_names)))
        if len(self.prompt_names) != len(self.class_names):
            raise UserError(
                f"{self.name}: prompt_names has {len(self.prompt_names)} entries for {len(self.class_names)} classes. "
                f"Give one prompt name per class, in the same order."
            )

    def __len__(self) -> int:
        return self.length

    def require(self, who: str, *what: str) -> None:
        """Raises one UserError naming what `who` needs, what is there, and the fix."""
        for thing in what:
            if thing not in self.has:
                there = ", ".join(["images", *sorted(self.has)])
                raise UserError(f"{who} needs {thing}, but {self.name} has only {there}. Fix: {FIXES[thing]}.")

    def load(self, index: int, masks: bool = False, depth: bool = False, normals: bool = False) -> Example:
        """Everything about one image, read once; mask, depth and normals only on demand.

        Raises UserError when one of these and the image differ in size, a mask value or label is outside the class
        list, depth is negative, or a normal has not length 1 or 0.
        """
        item = self.item(index)
        image = item.image()
        return Example(
            index,
            image,
            self._mask(item, image) if masks else None,
            item.captions or {},
            self._label(item),
            self._depth(item, image) if depth else None,
            self._normals(item, image) if normals else None,
            item.domain,
            tuple(self._inside(item, label) for label in item.also),
        )

    def image(self, index: int) -> Image.Image:
        """RGB, as stored (any size)."""
        return self.item(index).image()

    def mask(self, index: int) -> np.ndarray:
        """Integer `[H, W]` with the size of the image: values index `class_names`, or equal `ignore`."""
        mask = self.load(index, masks=True).mask
        assert mask is not None
        return mask

    def captions(self, index: int) -> dict[str, list[str]]:
        """Texts by field name; a field may be missing for an image."""
        self.require("Asking for captions", CAPTIONS)
        return self.item(index).captions or {}

    def label(self, index: int) -> int | None:
        """The image's class as an index into `class_names`; None where it has none."""
        self.require("Asking for labels", LABELS)
        return self._label(self.item(index))

    def _dense(self, item: Item, image: Image.Image, what: str, read: Callable[[], np.ndarray] | None) -> np.ndarray:
        """A label for each pixel, of the image's size."""
        if read is None:
            raise UserError(f"{self.name}: {item.key} has no {what}. Add it, or leave the image out of the split.")
        label = read()
        if label.shape[:2] != (image.height, image.width) or label.shape[2:] != ((3,) if what == "normal map" else ()):
            raise UserError(
                f"{self.name}: the {what} of {item.key} is {_size(label)}, its image {image.width}x{image.height}. "
                f"Both must have the same size: redo the {what} without resizing."
            )
        return label

    def _depth(self, item: Item, image: Image.Image) -> np.ndarray:
        self.require("Asking for depth", DEPTH)
        depth = np.asarray(self._dense(item, image, "depth map", item.depth), np.float32)
        if (depth < 0).any():
            raise UserError(
                f"{self.name}: the depth of {item.key} has the value {depth.min():g}. "
                f"Depth is above 0, and 0 or NaN where it is not known: correct it."
            )
        return depth

    def _normals(self, item: Item, image: Image.Image) -> np.ndarray:
        self.require("Asking for normals", NORMALS)
        normals = np.asarray(self._dense(item, image, "normal map", item.normals), np.float32)
        length = np.linalg.norm(normals, axis=-1)  # [H, W]
        wrong = (length != 0) & ~(np.abs(length - 1) <= UNIT)
        if wrong.any():
            raise UserError(
                f"{self.name}: the normals of {item.key} have one of length {length[wrong][0]:g}. "
                f"Normals have length 1, and 0 where they are not known: correct them."
            )
        return normals

    def _mask(self, item: Item, image: Image.Image) -> np.ndarray:
        self.require("Asking for masks", MASKS)
        mask = self._dense(item, image, "mask", item.mask)
        values = np.unique(mask)
        wrong = values[(values != self.ignore) & ((values < 0) | (values >= len(self.class_names)))]
        if len(wrong):
            raise self._outside(f"the mask of {item.key} has the value {wrong[0]}", f", and {self.ignore} = ignore")
        return mask

    def _label(self, item: Item) -> int | None:
        label = item.label() if item.label is not None else None
        return label if label is None else self._inside(item, label)

    def _inside(self, item: Item, label: int) -> int:
        if not 0 <= label < len(self.class_names):
            raise self._outside(f"{item.key} has the label {label}")
        return label

    def _outside(self, what: str, also: str = "") -> UserError:
        count = len(self.class_names)
        return UserError(
            f"{self.name}: {what}, but the class list has {count} names (allowed: 0 to {count - 1}{also}). "
            f"Give a class list of the right length, or correct the labels."
        )

    def train(self) -> EvalDataset:
        """The split that probes and neighbours are fitted on, opened once. UserError where its classes are others."""
        if self._train is None:
            if self.open_train is None:
                self.require("Fitting", TRAIN)
                raise AssertionError("a dataset that has a train split can open it")
            train = self.open_train()
            self._check_classes(train)
            self._train = train
        return self._train

    def _check_classes(self, train: EvalDataset) -> None:
        """UserError where a value stands for another class in the train split than here."""
        if not self.class_names or not train.class_names:
            return
        if len(train.class_names) != len(self.class_names):
            said = f"has {len(train.class_names)} classes, not {len(self.class_names)}"
        elif train.ignore != self.ignore:
            said = f"ignores the value {train.ignore}, not {self.ignore}"
        elif (at := _first_other(train.class_names, self.class_names)) is not None:
            said = f"calls the class {at} '{train.class_names[at]}', not '{self.class_names[at]}'"
        else:
            return
        raise UserError(
            f"{train.name}, which is to be fitted on for {self.name}, {said}. "
            f"Both must have the same classes in the same order: correct the classes.json of one, and its labels."
        )


def spread(count: int, samples: int | None) -> list[int]:
    """Which of `count` items are used: all, or `samples` at even distances (so that sorted classes all occur)."""
    if samples is None or samples >= count:
        return list(range(count))
    return [at * count // samples for at in range(samples)]


def _first_other(one: list[str], two: list[str]) -> int | None:
    """The first place where two lists of one length differ."""
    return next((at for at, (a, b) in enumerate(zip(one, two)) if a != b), None)


def _size(label: np.ndarray) -> str:
    return f"{label.shape[1]}x{label.shape[0]}" if label.ndim == 2 else f"of the shape {label.shape}"
