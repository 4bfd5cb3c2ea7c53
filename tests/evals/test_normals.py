from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distill.errors import UserError
from distill.evals import normals
from distill.evals.datasets import open_dataset
from distill.evals.run import check_evaluation

QUICK = {"channels": 8, "images": 4, "points": 64}


def tilted(angles):
    """Angles in degrees `[H, W]` -> normals tilted that much to the right."""
    radians = np.radians(angles)
    return np.stack([np.sin(radians), np.zeros_like(radians), np.cos(radians)], -1)


def split(arrays, paint, seed, count=6, train=None, change=lambda n: n):
    rng = np.random.default_rng(seed)
    grids = [rng.integers(0, 2, (3, 3)) for _ in range(count)]
    maps = [change(tilted(np.kron(g * 60.0, np.ones((8, 8))))) for g in grids]
    return arrays([paint(np.kron(g, np.ones((2, 2), int)), 4) for g in grids], normals=maps, train=train, size=24)


def test_learns_two_tilts(stub, arrays, paint):
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    table = 3 * torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    result = normals.run(stub(table), dataset, steps=40, lr=3e-3, channels=16, images=4, points=64)
    assert result.metrics["rmse"] < 0.6 * result.metrics["rmse_constant"]
    assert result.metrics["share_30"] > 0.8 > result.metrics["share_11"] - 0.2
    assert result.counts == {"images": 6, "train_images": 6, "pixels": 6 * 24 * 24}
    assert np.mean(result.per_image["rmse"]["values"]) == pytest.approx(result.metrics["rmse"], abs=1e-5)


def test_the_constant_answers_the_mean_normal_of_the_train_split(stub, arrays, paint):
    train = split(arrays, paint, 0)
    dataset = split(arrays, paint, 1, train=train)
    total = sum(train.load(i, normals=True).normals.astype(np.float64).sum((0, 1)) for i in range(6))
    mean = total / np.linalg.norm(total)
    errors = []
    for i in range(6):
        cosine = np.clip(dataset.load(i, normals=True).normals @ mean, -1, 1)
        errors.append(math.sqrt((np.degrees(np.arccos(cosine)) ** 2).mean()))
    found = normals.run(stub(torch.eye(5)), dataset, steps=1, **QUICK)
    assert found.metrics["rmse_constant"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_pixels_without_a_normal_are_left_out(stub, arrays, paint):
    def half(n):
        return n * (np.arange(24) < 12)[None, :, None]

    first = iter([True] + [False] * 5)
    dataset = split(
        arrays,
        paint,
        1,
        train=split(arrays, paint, 0, change=half),
        change=lambda n: n * 0 if next(first) else half(n),
    )
    result = normals.run(stub(torch.eye(5)), dataset, steps=1, **QUICK)
    assert result.counts["pixels"] == 5 * 24 * 12
    assert result.counts["images"] == 5 and result.counts["images_without_normals"] == 1


def test_scenes_twice_alike_and_better_with_training(tiny_model):
    dataset = open_dataset("scenes:32", samples=8)
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    early = normals.run(tiny_model, dataset, steps=1, **QUICK)
    late = normals.run(tiny_model, dataset, steps=12, lr=5e-3, **QUICK)
    assert late.metrics["rmse"] < early.metrics["rmse"]
    assert late.metrics == normals.run(tiny_model, dataset, steps=12, lr=5e-3, memory=1e-9, **QUICK).metrics
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, r"normals\.lr = 0: it must be above 0"),
        ({"steps": 0}, r"normals\.steps = 0"),
        ({"images": 0}, r"normals\.images = 0"),
        ({"points": 0}, r"normals\.points = 0"),
        ({"channels": 0}, r"normals\.channels = 0"),
        ({"memory": 0}, r"normals\.memory = 0"),
        ({"fit": "squre"}, "Did you mean 'square'"),
    ],
)
def test_bad_options(arrays, paint, options, words):
    dataset = split(arrays, paint, 0, count=1, train=split(arrays, paint, 0, count=1))
    with pytest.raises(UserError, match=words):
        check_evaluation({"normals": options}, dataset)


def test_bad_data(stub, arrays, paint):
    good = split(arrays, paint, 0, count=2)
    with pytest.raises(UserError, match="'normals' needs a train split"):
        check_evaluation(["normals"], good)
    with pytest.raises(UserError, match="'normals' needs normals"):
        check_evaluation(["normals"], arrays([paint(np.zeros((4, 4), int), 4)]))
    empty = split(arrays, paint, 0, count=2, change=lambda n: n * 0)
    with pytest.raises(UserError, match="no pixel has a normal to fit on"):
        normals.run(stub(torch.eye(5)), split(arrays, paint, 0, count=2, train=empty), steps=1, **QUICK)
    dark = split(arrays, paint, 1, count=2, train=good, change=lambda n: n * 0)
    with pytest.raises(UserError, match="no pixel has a normal to score"):
        normals.run(stub(torch.eye(5)), dark, steps=1, **QUICK)
