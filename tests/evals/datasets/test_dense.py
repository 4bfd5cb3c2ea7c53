"""Depth and normals of a dataset: checked as masks are."""

import numpy as np
import pytest
from PIL import Image

from distill.errors import UserError
from distill.evals.datasets.base import DEPTH, NORMALS, EvalDataset, Item


def dataset(depth=None, normals=None, has=(DEPTH, NORMALS)):
    item = Item(
        "image 0",
        image=lambda: Image.new("RGB", (4, 3)),
        depth=None if depth is None else (lambda: depth),
        normals=None if normals is None else (lambda: normals),
        domain="cars",
    )
    return EvalDataset("arrays", 4, lambda index: item, 1, frozenset(has))


def towards(height=3, width=4):
    return np.tile(np.array([0, 0, 1], np.float64), (height, width, 1))


def test_zero_and_nan_depth_and_zero_normals_are_allowed():
    depth, normals = np.full((3, 4), 2.5), towards()
    depth[0, 0], depth[1, 1], normals[2, 2] = 0, np.nan, 0
    example = dataset(depth, normals).load(0, depth=True, normals=True)
    assert example.depth.dtype == example.normals.dtype == np.float32
    assert np.array_equal(example.depth, depth.astype(np.float32), equal_nan=True)
    assert np.array_equal(example.normals, normals) and example.domain == "cars"


@pytest.mark.parametrize(
    ("given", "asked", "message"),
    [
        ({"depth": np.ones((4, 3))}, "depth", r"the depth map of image 0 is 3x4, its image 4x3"),
        ({"depth": np.ones((3, 4, 3))}, "depth", r"the depth map of image 0 is of the shape \(3, 4, 3\)"),
        ({"depth": np.full((3, 4), -1.5)}, "depth", r"has the value -1\.5\. Depth is above 0"),
        ({"normals": towards(4, 3)}, "normals", r"the normal map of image 0 is of the shape \(4, 3, 3\)"),
        ({"normals": np.ones((3, 4))}, "normals", r"the normal map of image 0 is 4x3"),
        ({"normals": 2 * towards()}, "normals", r"one of length 2\. Normals have length 1"),
        ({"normals": np.nan * towards()}, "normals", r"one of length nan"),
        ({}, "depth", r"image 0 has no depth map\. Add it"),
        ({"has": ()}, "normals", r"Asking for normals needs normals, but arrays has only images"),
    ],
)
def test_bad_labels(given, asked, message):
    with pytest.raises(UserError, match=message):
        dataset(**given).load(0, **{asked: True})
