from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.errors import UserError
from distill.evals import linear_seg, segment
from distill.evals.cache import centres
from distill.evals.linear_heads import LinearHeads
from distill.evals.linear_seg import LinearSegmentation
from distill.evals.prompts import TextCache
from distill.evals.run import check_evaluation
from distill.evals.task import Context

QUICK = {"steps": 40, "lr": 0.1, "images": 4, "pixels": 64}


def split(arrays, paint, seed, count=8, train=None, mask=lambda m: m, sides=(6, 6), **more):
    rng = np.random.default_rng(seed)
    grids = [rng.integers(0, 5, sides) for _ in range(count)]
    masks = [mask(np.kron(g, np.ones((4, 4), int))) for g in grids]
    return arrays([paint(g, 4) for g in grids], masks, train=train, size=24, **more)


@pytest.mark.parametrize("cls", ["with", "without"])
def test_reads_linear_features(stub, arrays, paint, cls):
    """The stub's tokens name the class; pixels between two patches are what the score loses."""
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    result = linear_seg.run(stub(torch.eye(5)), dataset, cls=cls, **QUICK)
    assert result.metrics["miou"] > 0.75 and result.metrics["pixel_accuracy"] > 0.85
    assert result.metrics["miou_chance"] < 0.15
    assert result.counts == {
        "images": 8,
        "train_images": 8,
        "classes": 5,
        "classes_present": 5,
        "pixels": 8 * 24 * 24,
    }
    assert set(result.details["iou"]) == {"cat", "dog", "tree", "sky", "road"}


def test_the_best_of_the_sweep_is_reported_and_one_pass_serves_all(stub, arrays, paint):
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    model = stub(torch.eye(5))
    result = linear_seg.run(model, dataset, **{**QUICK, "lr": [1e-7, 0.1]})
    assert model.seen == [(8, 3, 24, 24), (8, 3, 24, 24)]
    assert result.metrics["miou"] == result.metrics["miou_lr0.1"] > result.metrics["miou_lr1e-07"]
    assert result.details["best_lr"] == 0.1
    alone = linear_seg.run(stub(torch.eye(5)), dataset, **QUICK)
    assert alone.metrics["miou"] == pytest.approx(result.metrics["miou"])


def test_a_head_at_a_pixel_gives_the_raised_logit_of_that_pixel(stub, arrays, paint):
    """What training samples is the published loss: raising the logits and raising the features are one."""
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    model = stub(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    options = LinearSegmentation.options_from({"lr": [0.1, 0.2]}, dataset)
    task = LinearSegmentation(Context(model, dataset, TextCache(model)), options)
    images = torch.rand(3, 3, 24, 16, generator=torch.Generator().manual_seed(0)) * 0.2
    cls, patches = model.encode_image(images)
    for norm, feature in zip(task.norms, (patches, cls[:, 0])):
        norm.add(feature)
    heads = LinearHeads(14, 5, [0.1, 0.2])
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        maps = heads(task._inputs([patches, cls[:, 0]])).permute(3, 0, 4, 1, 2)  # [R, B, K, h, w]
        at = torch.arange(21 * 13)
        places = centres(at // 13, at % 13, 21, 13).expand(3, -1, -1)
        points = heads(task._inputs([patches, cls[:, 0]], places))  # [B, P, R, K]
    for rate in range(2):
        raised = F.interpolate(maps[rate], size=(21, 13), mode="bilinear", align_corners=False)
        torch.testing.assert_close(points[:, :, rate], raised.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("ignore", "kind"), [(255, "uint8"), (-1, "int16"), (65535, "uint16"), (70000, "int32")])
def test_ignored_pixels_are_neither_fitted_nor_scored(stub, arrays, paint, ignore, kind):
    """Whatever value says ignore: those that the kept masks' int16 does not hold as well."""

    def scores(ignore, kind):
        def hidden(mask):
            return np.where(np.arange(24) < 12, ignore, mask).astype(kind)

        train = split(arrays, paint, 0, mask=hidden, ignore=ignore)
        dataset = split(arrays, paint, 1, train=train, mask=hidden, ignore=ignore)
        return linear_seg.run(stub(torch.eye(5)), dataset, **QUICK)

    result = scores(ignore, kind)
    assert result.counts["pixels"] == 8 * 24 * 12
    assert result.metrics["miou"] > 0.7
    assert result.metrics == scores(255, "int64").metrics


def test_mixed_sizes_absent_classes_and_files_instead_of_memory(stub, arrays, paint):
    rng = np.random.default_rng(0)

    def pictures(count):
        grids = [rng.integers(0, 3, (4, 4 + at % 3)) for at in range(count)]
        return [paint(g, 4) for g in grids], [np.kron(g, np.ones((4, 4), int)) for g in grids]

    train = arrays(*pictures(7))
    dataset = arrays(*pictures(5), train=train)
    result = linear_seg.run(stub(torch.eye(5)), dataset, **QUICK)
    assert result.counts["classes_present"] == 3 and result.metrics["miou"] > 0.7
    assert result.details["iou"]["road"] is None
    again = linear_seg.run(stub(torch.eye(5)), dataset, memory=1e-9, **QUICK)
    assert again.metrics == result.metrics


def test_images_raised_apart_score_as_those_raised_together(stub, arrays, paint, monkeypatch):
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    options = {**QUICK, "lr": [0.01, 0.1]}
    at_once = linear_seg.run(stub(torch.eye(5)), dataset, **options)
    monkeypatch.setattr(segment, "RAISED", 1)
    apart = linear_seg.run(stub(torch.eye(5)), dataset, **options)
    assert apart.metrics == at_once.metrics and apart.per_image == at_once.per_image


def test_bad_input(stub, arrays, paint):
    with pytest.raises(UserError, match="'linear_seg' needs a train split"):
        check_evaluation(["linear_seg"], split(arrays, paint, 0, count=1))
    good = split(arrays, paint, 0, count=2)
    empty = split(arrays, paint, 0, count=2, mask=lambda m: np.full_like(m, 255))
    with pytest.raises(UserError, match=r"every pixel of its masks is 255 \(ignore\)"):
        linear_seg.run(stub(torch.eye(5)), split(arrays, paint, 1, count=2, train=empty), **QUICK)
    dark = split(arrays, paint, 1, count=2, train=good, mask=lambda m: np.full_like(m, 255))
    with pytest.raises(UserError, match=r"every pixel of its masks is 255 \(ignore\)"):
        linear_seg.run(stub(torch.eye(5)), dark, **QUICK)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cls": "yes"}, "Allowed: with, without"),
        ({"lr": []}, r"linear_seg\.lr = \[\]"),
        ({"steps": 0}, r"linear_seg\.steps = 0: it must be at least 1"),
        ({"images": 0}, r"linear_seg\.images"),
        ({"pixels": 0}, r"linear_seg\.pixels"),
        ({"memory": 0}, r"linear_seg\.memory = 0: it must be above 0"),
    ],
)
def test_bad_options(arrays, paint, options, words):
    dataset = split(arrays, paint, 0, count=1, train=split(arrays, paint, 0, count=1))
    with pytest.raises(UserError, match=words):
        check_evaluation({"linear_seg": options}, dataset)
