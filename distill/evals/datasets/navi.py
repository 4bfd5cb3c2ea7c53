"""NAVI (`navi:navi_v1`): single objects with depth, and normals worked out from it.

    OBJECT/multiview_*/{annotations.json, images/000.jpg, depth/000.png}      (version 1.5: OBJECT/multiview-*/)
    OBJECT/wild_set/{annotations.json, images/000.jpg, depth/000.png}

Protocol of Probe3D (El Banani et al., CVPR 2024), whose split later probes of TIPSv2's authors use (arXiv 2602.24181);
that of the papers is not known here. Fitted on the multi-view scenes (`train`), evaluated on the images in the wild
(`test`), of objects that have both, every fourth image in sorted order, brought to a short side of 512 pixels (images
antialiased, depth by nearest neighbour), cut to the square around the object. Depth: 16-bit PNG of inverse depth,
65535 x 10 / value millimetres, 0 = no object. Normals: the mean of the cross products of the vectors to the four
neighbours at that size, with the focal length of annotations.json brought to it. Probe3D's depth probe reaches to 1 m
there: `depth.max=1`.

Half a metre away the steps of the stored depth are 0.4 mm, those from pixel to pixel 0.2 mm at the size of the files
and 1 mm at 512: on a sphere of 80 mm normals are wrong by 22 degrees (root mean square) there and by 4 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from distill.errors import UserError
from distill.evals.datasets.assemble import Lazily
from distill.evals.datasets.base import Item
from distill.evals.datasets.benchmark import Benchmark
from distill.evals.datasets.files import decode, list_images, read_depth, read_json, require_file

INVERSE = 65535 * 10  # value times depth in millimetres
EVERY = 4
MULTIVIEW = "multiview[-_]*"  # folders: multiview_00_CAMERA in version 1, multiview-00-CAMERA in 1.5
SHORT = 512  # pixels of the short side that images and labels are brought to
FAR = 1e6  # stands behind the object where normals are worked out
Box = tuple[int, int, int, int]  # left, top, right, bottom


class Navi(Benchmark):
    kind = "navi"
    expected = "OBJECT/wild_set/ and OBJECT/multiview_*/ (or multiview-*/) with images/, depth/ and annotations.json"
    inside = ("navi_v1", "navi_v1.5")
    split, fitted, size = "test", "train", 448

    def fits(self, root: Path) -> bool:
        return bool(_objects(root))

    def splits(self, root: Path) -> list[str]:
        return ["train", "test"]

    def items(self, root: Path, split: str) -> Sequence[Item]:
        pattern = MULTIVIEW if split == "train" else "wild_set"
        scenes = [scene for thing in _objects(root) for scene in sorted(thing.glob(pattern))]
        paths = [path for scene in scenes for path in list_images(scene / "images") if "_" not in path.stem]
        return Lazily(paths[::EVERY], partial(_item, root))


def _objects(root: Path) -> list[Path]:
    """Objects with scenes of both kinds, sorted."""
    wild = [path.parent for path in root.glob("*/wild_set") if path.is_dir()]
    return sorted(thing for thing in wild if any(thing.glob(MULTIVIEW)))


def _item(root: Path, path: Path) -> Item:
    depth = require_file(path.parents[1] / "depth" / f"{path.stem}.png", "depth map")
    return Item(
        key=str(path.relative_to(root)),
        image=partial(_image, path, depth),
        depth=lambda: _cut(_depth(depth).metres, _box(depth)),
        normals=partial(_normals, path, depth),
        files=(path.parents[1] / "annotations.json",),
    )


class _Depth(NamedTuple):
    """A depth map, brought to SHORT."""

    metres: np.ndarray  # [h, w] float32, 0 where there is no object
    stored: tuple[int, int]  # width and height of the file


@lru_cache(maxsize=2)  # image, depth and normals of one item all need it
def _depth(path: Path) -> _Depth:
    stored = read_depth(path, unit=1.0)
    height, width = stored.shape
    value = nearest(stored, *brought(width, height))
    metres = np.where(value > 0, INVERSE / 1000 / np.maximum(value, 1), 0).astype(np.float32)
    return _Depth(metres, (width, height))


def brought(width: int, height: int) -> tuple[int, int]:
    """Width and height with a short side of SHORT; smaller ones as they are."""
    scale = min(1.0, SHORT / min(width, height))
    return round(width * scale), round(height * scale)


def nearest(array: np.ndarray, width: int, height: int) -> np.ndarray:
    """`[H, W]` brought to `[height, width]`: each pixel is the one below its centre."""
    rows, columns = (
        (2 * np.arange(count) + 1) * there // (2 * count) for count, there in zip((height, width), array.shape)
    )
    return array[rows[:, None], columns]


def _image(path: Path, depth: Path) -> Image.Image:
    image, (width, height) = decode(path, str(path)), _depth(depth).stored
    if image.size != (width, height):
        raise UserError(
            f"The depth map {depth} is {width}x{height}, its image {image.width}x{image.height}. Download both again."
        )
    return image.resize(brought(width, height), Image.Resampling.BICUBIC).crop(_box(depth))


def _box(path: Path) -> Box:
    return square_around(_depth(path).metres > 0, path)


def square_around(there: np.ndarray, path: Path) -> Box:
    """The square of the longer side of the object's box, centred on it where the picture allows, moved inside else."""
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    if not len(rows):
        raise UserError(f"The depth map {path} shows no object: all of it is 0. Leave its image out.")
    low = np.array([columns[0], rows[0]])
    length = np.array([columns[-1], rows[-1]]) + 1 - low
    side = int(min(length.max(), *there.shape))
    limit = np.array(there.shape[::-1]) - side
    left, top = np.clip(low - (side - length) // 2, 0, limit)
    return int(left), int(top), int(left) + side, int(top) + side


def _cut(array: np.ndarray, box: Box) -> np.ndarray:
    return array[box[1] : box[3], box[0] : box[2]]


def _normals(image: Path, depth: Path) -> np.ndarray:
    notes = {note["filename"]: note for note in read_json(image.parents[1] / "annotations.json")}
    if image.name not in notes:
        raise UserError(f"{image.parents[1] / 'annotations.json'} has no entry for {image.name}. Download it again.")
    metres, stored = _depth(depth)
    focal = float(notes[image.name]["camera"]["focal_length"]) * min(metres.shape) / min(stored)
    return _cut(normals_of(metres, focal), _box(depth))


def normals_of(depth: np.ndarray, focal: float) -> np.ndarray:
    """Normals `[H, W, 3]` (right, up, towards the viewer) of depth `[H, W]`; focal length in pixels; zeros at the rim.

    Zeros also where depth is 0. The principal point is the centre.
    """
    height, width = depth.shape
    y, x = np.mgrid[:height, :width] + 0.5
    z = np.where(depth > 0, depth, FAR).astype(np.float64)
    points = np.stack([(x - width / 2) * z / focal, (height / 2 - y) * z / focal, -z], -1)  # [H, W, 3]
    centre = points[1:-1, 1:-1]
    left, right = points[1:-1, :-2] - centre, points[1:-1, 2:] - centre
    up, down = points[:-2, 1:-1] - centre, points[2:, 1:-1] - centre
    around = ((right, up), (up, left), (left, down), (down, right))  # anticlockwise: the product faces the viewer
    normals = np.zeros((height, width, 3))
    normals[1:-1, 1:-1] = sum(np.cross(one, next) for one, next in around)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    unit = normals / np.where(length > 0, length, 1)
    return np.where((depth > 0)[..., None], unit, 0).astype(np.float32)
