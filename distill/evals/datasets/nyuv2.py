"""NYU Depth v2 (`nyuv2:ROOT`): indoor depth, 480 x 640.

    official_splits/{train,test}/SCENE/rgb_00045.jpg             the 795 and 654 labelled images, as everybody extracts
    official_splits/{train,test}/SCENE/sync_depth_00045.png      16-bit, millimetres, 0 = not known
    official_splits/{train,test}/SCENE/normal_00045.npy          normals, if you add them (or .png): NYUv2 has none
    sync/SCENE_0001/rgb_00000.jpg, sync_depth_00000.png          the 24,231 frames that depth is often trained on

or `nyu_depth_v2_labeled.mat` itself, for its depth alone, with the official `splits.mat` beside it, or instead
`train.txt` and `test.txt` that hold numbers of images (from 1); needs h5py and scipy (`pip install
'everypatch[evals]'`). Depth beyond 10 m is not known. `?train=sync` fits on the raw frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.errors import UserError
from distill.evals.datasets.assemble import Lazily
from distill.evals.datasets.base import Item
from distill.evals.datasets.benchmark import Benchmark
from distill.evals.datasets.files import decode, read_depth, read_normals, require_file

LABELLED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
NUMBERS = {"train": "trainNdxs", "test": "testNdxs"}  # of SPLITS, [N, 1], from 1
FARTHEST = 10.0  # metres


class NyuV2(Benchmark):
    kind = "nyuv2"
    expected = f"official_splits/test/SCENE/ with rgb_*.jpg and sync_depth_*.png, or {LABELLED} and {SPLITS}"
    inside = ("nyu_depth_v2", "nyu")
    split, fitted, size = "test", "train", 448

    def fits(self, root: Path) -> bool:
        return bool(self.splits(root))

    def splits(self, root: Path) -> list[str]:
        if (root / LABELLED).is_file():
            return [name for name in NUMBERS if (root / SPLITS).is_file() or (root / f"{name}.txt").is_file()]
        return [name for name in ("train", "test", "sync") if _folder(root, name).is_dir()]

    def items(self, root: Path, split: str) -> Sequence[Item]:
        if (root / LABELLED).is_file():
            return Lazily(_numbers(root, split), partial(_labelled, root / LABELLED))
        return Lazily(sorted(_folder(root, split).glob("*/rgb_*.jpg")), _frame)


def _folder(root: Path, split: str) -> Path:
    return root / "sync" if split == "sync" else root / "official_splits" / split


def _frame(path: Path) -> Item:
    number = path.stem.removeprefix("rgb_")
    depth = require_file(path.with_name(f"sync_depth_{number}.png"), "depth map")
    found = (path.with_name(f"normal_{number}{ending}") for ending in (".npy", ".png"))
    normals = next((file for file in found if file.is_file()), None)
    return Item(
        key=f"{path.parent.name}/{path.stem}",
        image=partial(decode, path, str(path)),
        depth=partial(_near, partial(read_depth, depth)),
        normals=None if normals is None else partial(read_normals, normals),
    )


def _near(read: Any) -> np.ndarray:
    depth = read()
    return np.where(depth > FARTHEST, 0, depth)


def _numbers(root: Path, split: str) -> list[int]:
    """Numbers of a split's images, from 1: its text file's, or else those of the official splits."""
    file = root / f"{split}.txt"
    if not file.is_file():
        return _official(root / SPLITS, NUMBERS[split])
    words = file.read_text(encoding="utf-8").split()
    wrong = next((word for word in words if not word.isdigit() or int(word) < 1), None)
    if wrong is not None:
        raise UserError(f"{file}: '{wrong}' is no image number. Write numbers from 1, as in {SPLITS}.")
    return [int(word) for word in words]


def _official(file: Path, name: str) -> list[int]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            f"Reading {file} needs scipy: pip install 'everypatch[evals]', or write train.txt and test.txt."
        ) from None
    try:
        return [int(number) for number in loadmat(file, variable_names=[name])[name].ravel()]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"Cannot read {name} in {file}: {error}. Download it again.") from error


def _labelled(file: Path, number: int) -> Item:
    """Image `number` (from 1). MATLAB stores arrays transposed: images [N, 3, W, H], depths [N, W, H]."""

    def image() -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(_read(file, "images", number).transpose(2, 1, 0)))

    def depth() -> np.ndarray:
        return _near(lambda: _read(file, "rawDepths", number).T.astype(np.float32))

    return Item(key=f"{file.name} image {number}", image=image, depth=depth, files=(file,))


def _read(file: Path, name: str, number: int) -> np.ndarray:
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"Reading {file} needs h5py: pip install 'everypatch[evals]', or extract it to official_splits/."
        ) from None
    try:
        with h5py.File(file, "r") as content:
            return content[name][number - 1]
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise UserError(f"Cannot read {name} of image {number} in {file}: {error}. Download it again.") from error
