from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distill.errors import UserError
from distill.evals import depth, dpt_probe
from distill.evals.cache import interpolate
from distill.evals.datasets import open_dataset
from distill.evals.depth import DepthOptions, DptDepth, LinearDepth, draw_cells, expected_depth, log_error
from distill.evals.dpt import DptHead
from distill.evals.features import Batch
from distill.evals.run import check_evaluation

QUICK = {"steps": 60, "images": 4}
FAR = np.array([0.8, 1.5, 2.5, 4.0, 7.0])  # depth of each class


def split(arrays, paint, seed, count=8, train=None, change=lambda d: d, side=24):
    rng = np.random.default_rng(seed)
    grids = [rng.integers(0, 5, (6, 6)) for _ in range(count)]
    maps = [change(np.kron(FAR[g], np.ones((4, 4)))) for g in grids]
    return arrays([paint(g, 4) for g in grids], depth=maps, train=train, size=side)


def test_the_expectation_over_bins():
    logits = torch.tensor([[3.0, -1.0, 1.0], [-5.0, -5.0, -5.0]])
    values = torch.tensor([1.0, 2.0, 4.0])
    expected = [(3.1 * 1 + 0.1 * 2 + 1.1 * 4) / 4.3, 7 / 3]
    assert expected_depth(logits, values, 0.1).tolist() == pytest.approx(expected)


def test_the_loss_is_that_of_its_definition_and_forgives_a_common_factor():
    rng = np.random.default_rng(0)
    truth, predicted = rng.uniform(1, 8, 50), rng.uniform(1, 8, 50)
    g = np.log(predicted) - np.log(truth)
    expected = math.sqrt(g.var() + 0.15 * g.mean() ** 2)
    found = log_error(torch.tensor(predicted)[None].expand(2, -1), torch.tensor(truth))
    assert found.tolist() == pytest.approx([expected] * 2)
    twice = log_error(2 * torch.tensor(truth), torch.tensor(truth))
    assert twice.item() == pytest.approx(math.sqrt(0.15) * math.log(2))
    exact = torch.tensor([1.0, 2.0], requires_grad=True)
    log_error(exact, torch.tensor([1.0, 2.0])).backward()
    assert torch.isfinite(exact.grad).all()


def test_the_truth_of_a_cell_is_the_pixel_at_its_centre():
    truth = [torch.arange(12.0 * 20).reshape(12, 20), torch.arange(5.0 * 7).reshape(5, 7)]
    places, found = draw_cells(truth, (2, 3), 40, torch.Generator().manual_seed(0))
    for spots, values, label in zip(places, found, truth):
        height, width = label.shape
        for (x, y), value in zip(spots.tolist(), values):
            assert value == label[int((y + 1) / 2 * height + 1e-5), int((x + 1) / 2 * width + 1e-5)]


def test_depth_of_a_batch_is_read_a_few_images_at_a_time(stub, monkeypatch):
    """The same depth as from the volume `[B, bins, 8h, 8w]` of all, which is never there."""
    model = stub(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)))
    probe = DptDepth(model, DepthOptions(head="dpt", lr=[0.1], channels=8))
    torch.manual_seed(0)
    probe.probe.head = DptHead(16, 256, channels=8, relu=True).eval()
    images = torch.rand(7, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 0.2
    layers = model.image.layers(images, [0, 1, 2, 3])
    batch = Batch(
        [None] * 7, images, layers={at: (x.cls, x.patches.unflatten(1, (4, 6))) for at, x in enumerate(layers)}
    )
    monkeypatch.setattr(dpt_probe, "IMAGES_AT_A_TIME", 3)
    seen = []
    monkeypatch.setattr(
        depth, "expected_depth", lambda logits, *rest: seen.append(len(logits)) or expected_depth(logits, *rest)
    )
    with torch.no_grad():
        found = probe.predict(batch)
        assert seen == [3, 3, 1]
        expected = expected_depth(probe.probe.raw(batch).permute(0, 2, 3, 1), probe.values, 0.001)
    assert expected.shape == (7, 32, 48)
    torch.testing.assert_close(torch.stack(found), expected[:, None], rtol=0, atol=1e-5)


def test_training_sees_the_depth_that_is_predicted(stub):
    """At the cells of the raised grid, features interpolated and then mapped give what mapping and raising gives."""
    options = DepthOptions(bins=7, max=5.0, lr=[0.1, 0.2])
    model = stub(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
    images = torch.rand(2, 3, 12, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    cls, patches = model.encode_image(images)
    probe = LinearDepth(model, options)
    batch = Batch([None, None], images, cls, patches)
    truth = [torch.full((12, 8), 2.0), torch.full((12, 8), 3.0)]
    with torch.no_grad():
        probe.add(batch, truth)
        options.steps = 3
        probe.train()
        maps = torch.stack(probe.predict(batch))  # [B, R, 12, 8]
        places, _ = draw_cells(truth, (3, 2), 30, torch.Generator().manual_seed(0))
        tokens = probe.norms[1](cls[:, 0])[:, None].expand(-1, 30, -1)
        x = torch.cat([interpolate(probe.norms[0](patches), places), tokens], -1)
        points = expected_depth(probe.heads(x), probe.values, 0.1)  # [B, P, R]
    for image in range(2):
        columns = ((places[image, :, 0] + 1) / 2 * 8).long()
        rows = ((places[image, :, 1] + 1) / 2 * 12).long()
        torch.testing.assert_close(points[image].T, maps[image][:, rows, columns], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cls", ["with", "without"])
def test_reads_depth_that_is_linear_in_the_features(stub, arrays, paint, cls):
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    result = depth.run(stub(torch.eye(5)), dataset, cls=cls, lr=0.3, **QUICK)
    assert result.metrics["rmse"] < 0.6 * result.metrics["rmse_constant"]
    assert result.metrics["delta1"] > 0.5
    assert result.counts == {"images": 8, "train_images": 8, "pixels": 8 * 24 * 24}
    for name in ("rmse", "abs_rel", "delta1", "rmse_constant"):
        values = result.per_image[name]["values"]
        assert len(values) == 8 and np.mean(values) == pytest.approx(result.metrics[name], abs=1e-5)
    assert result.protocol["points"] == 64 and result.protocol["eps"] == 0.1


def test_the_constant_answers_the_mean_of_the_train_split(stub, arrays, paint):
    train, dataset = split(arrays, paint, 0), split(arrays, paint, 1)
    mean = np.mean([train.load(i, depth=True).depth for i in range(8)])
    maps = [dataset.load(i, depth=True).depth for i in range(8)]
    expected = np.mean([math.sqrt(((m - mean) ** 2).mean()) for m in maps])
    found = depth.run(stub(torch.eye(5)), split(arrays, paint, 1, train=train), steps=1)
    assert found.metrics["rmse_constant"] == pytest.approx(expected, rel=1e-5)


def test_the_least_error_of_the_sweep_is_reported(stub, arrays, paint):
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    model = stub(torch.eye(5))
    result = depth.run(model, dataset, lr=[1e-7, 0.05], **QUICK)
    assert result.metrics["rmse"] == result.metrics["rmse_lr0.05"] < result.metrics["rmse_lr1e-07"]
    assert result.details["best_lr"] == 0.05 and len(model.seen) == 2


def test_unknown_and_distant_pixels_are_neither_fitted_nor_scored(stub, arrays, paint):
    def spoiled(bad):
        def change(d):
            d = d.copy()
            d[:, :12] = bad
            return d

        return change

    clean = depth.run(
        stub(torch.eye(5)),
        split(arrays, paint, 1, train=split(arrays, paint, 0, change=spoiled(0)), change=spoiled(0)),
        steps=6,
    )
    assert clean.counts["pixels"] == 8 * 24 * 12
    for bad in (np.nan, 10.5, np.inf):
        train = split(arrays, paint, 0, change=spoiled(bad))
        result = depth.run(stub(torch.eye(5)), split(arrays, paint, 1, train=train, change=spoiled(bad)), steps=6)
        assert result.metrics == clean.metrics
        outside = 8 * 24 * 12 if bad == 10.5 else None  # the others say nothing
        assert result.counts.get("pixels_out_of_range") == outside


def test_the_crop_and_images_without_depth(stub, arrays, paint):
    empty = iter([True] + [False] * 7)
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0), change=lambda d: d * 0 if next(empty) else d)
    result = depth.run(stub(torch.eye(5)), dataset, crop="eigen", steps=2)
    assert result.counts["images"] == 7 and result.counts["images_without_depth"] == 1
    rows, columns = round(471 / 480 * 24) - round(45 / 480 * 24), round(601 / 640 * 24) - round(41 / 640 * 24)
    assert result.counts["pixels"] == 7 * rows * columns


def test_the_range_can_be_chosen(stub, arrays, paint):
    train = split(arrays, paint, 0)
    near = depth.run(stub(torch.eye(5)), split(arrays, paint, 1, train=train), max=3.0, **QUICK)
    kept = np.mean([(dataset_map < 3).mean() for dataset_map in maps_of(split(arrays, paint, 1))])
    assert near.counts["pixels"] == pytest.approx(kept * 8 * 24 * 24)
    assert near.counts["pixels_out_of_range"] == 8 * 24 * 24 - near.counts["pixels"]
    cut = depth.run(stub(torch.eye(5)), split(arrays, paint, 1, train=train), max=3.0, crop="eigen", steps=1)
    assert cut.counts["pixels"] + cut.counts["pixels_out_of_range"] == 8 * (24 - 2) * (23 - 2)
    assert near.metrics["rmse"] < near.metrics["rmse_constant"] < 1


def maps_of(dataset):
    return [dataset.load(i, depth=True).depth for i in range(len(dataset))]


def test_files_instead_of_memory_change_nothing(stub, arrays, paint):
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    one, two = (depth.run(stub(torch.eye(5)), dataset, memory=memory, steps=5) for memory in (1.0, 1e-9))
    assert one.metrics == two.metrics


def test_a_dpt_head_learns(tiny_model):
    dataset = open_dataset("scenes:32", samples=8)
    options = {"head": "dpt", "channels": 8, "images": 4, "points": 64}
    early = depth.run(tiny_model, dataset, steps=1, **options)
    late = depth.run(tiny_model, dataset, steps=20, lr=5e-3, **options)
    assert late.metrics["rmse"] < 0.8 * early.metrics["rmse"]
    assert late.protocol["eps"] == 0.001 and late.protocol["points"] == 64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "dtp"}, "Did you mean 'dpt'"),
        ({"cls": "no"}, "Allowed: with, without"),
        ({"crop": "garg"}, "Allowed: eigen, none"),
        ({"fit": "squre"}, "Did you mean 'square'"),
        ({"min": 0}, r"depth\.min = 0: it must be above 0"),
        ({"max": 0.0001}, r"depth\.max = 0\.0001: it must be above depth\.min"),
        ({"bins": 1}, r"depth\.bins = 1: it must be at least 2"),
        ({"lr": -1}, r"depth\.lr = \[-1\]"),
        ({"head": "dpt", "lr": [0.1, 0.2]}, "a DPT head is trained with one rate"),
        ({"points": 0}, r"depth\.points = 0"),
        ({"steps": 0}, r"depth\.steps = 0"),
        ({"channels": 0}, r"depth\.channels = 0"),
        ({"memory": -1}, r"depth\.memory = -1"),
    ],
)
def test_bad_options(arrays, paint, options, words):
    dataset = split(arrays, paint, 0, count=1, train=split(arrays, paint, 0, count=1))
    with pytest.raises(UserError, match=words):
        check_evaluation({"depth": options}, dataset)


def test_bad_data_and_models(stub, arrays, paint):
    good = split(arrays, paint, 0, count=2)
    with pytest.raises(UserError, match="'depth' needs a train split"):
        check_evaluation(["depth"], good)
    with pytest.raises(UserError, match="'depth' needs depth, but arrays has only images"):
        check_evaluation(["depth"], arrays([paint(np.zeros((4, 4), int), 4)]))
    empty = split(arrays, paint, 0, count=2, change=lambda d: d * 0)
    with pytest.raises(UserError, match=r"no pixel has a depth between 0\.001 and 10\. Set depth\.max"):
        depth.run(stub(torch.eye(5)), split(arrays, paint, 0, count=2, train=empty), steps=1)
    dark = split(arrays, paint, 1, count=2, train=good, change=lambda d: d * 0)
    with pytest.raises(UserError, match="no pixel has a depth between"):
        depth.run(stub(torch.eye(5)), dark, steps=1)
    model = stub(torch.eye(5))
    model.image = type("Plain", (), {"patch": 4})()
    dataset = split(arrays, paint, 1, count=2, train=good)
    with pytest.raises(UserError, match="'depth' reads the outputs of earlier blocks"):
        depth.run(model, dataset, head="dpt")
    assert depth.run(model, dataset, steps=1).metrics["rmse"] > 0
