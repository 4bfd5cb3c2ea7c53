from __future__ import annotations

import math
from collections import namedtuple

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F

from distill.errors import UserError
from distill.evals import linear_cls
from distill.evals.cache import Store
from distill.evals.linear_cls import RATES, Rows, SgdHeads
from distill.evals.run import check_evaluation


def test_heads_equal_torch_sgd_one_by_one():
    """Two epochs of three batches, momentum and cosine by torch.optim, a run for each rate."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 5, generator=generator), torch.arange(12) % 3
    rates = [0.01, 0.3, 2.0]
    heads = SgdHeads(5, 3, rates, torch.device("cpu"))
    start = heads.weight.clone().unflatten(1, (3, 3))
    heads.train(x, y, batch=4, steps=6)
    for at, rate in enumerate(rates):
        weight = start[:, at].clone().requires_grad_()
        bias = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.SGD([weight, bias], lr=rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / 6)))
        order = torch.Generator().manual_seed(0)
        for _ in range(2):
            for chosen in torch.randperm(12, generator=order).split(4):
                optimizer.zero_grad()
                F.cross_entropy(x[chosen] @ weight + bias, y[chosen]).backward()
                optimizer.step()
                schedule.step()
        torch.testing.assert_close(heads.weight.unflatten(1, (3, 3))[:, at], weight.detach())
        torch.testing.assert_close(heads.bias.unflatten(0, (3, 3))[at], bias.detach())
        expected = (x @ weight + bias).argmax(1)
        assert torch.equal(heads.predict(x)[at], expected)


@pytest.mark.parametrize("memory", [1.0, 1e-9])
def test_features_are_kept_once(memory):
    store = Store(memory, "task.memory")
    rows, parts = Rows(9, store), [torch.randn(n, 3) for n in (0, 4, 2)]
    for part in parts:
        rows.add(part)
    assert store.files == (memory < 1)
    assert torch.equal(rows.filled, torch.cat(parts))
    assert rows.filled.data_ptr() == rows.block.data_ptr() and rows.block.shape == (9, 3)
    with pytest.raises(RuntimeError, match="size"):
        rows.add(torch.randn(4, 3))


def classified(arrays, paint, count, train=None, missing=(), classes=5):
    images = [paint(np.full((4, 4), i % classes), 4) for i in range(count)]
    return arrays(images, labels=[None if i in missing else i % classes for i in range(count)], train=train)


def test_separable_classes_score_one_and_counts_are_told(stub, arrays, paint):
    train = classified(arrays, paint, 20, missing={3})
    dataset = classified(arrays, paint, 11, train=train, missing={0})
    model = stub(torch.eye(5))
    result = linear_cls.run(model, dataset, steps=60)
    names = ("last1", "last1_patches", "last4", "last4_patches")
    assert {f"top1_{name}" for name in names} | {"top1", "top1_constant"} == set(result.metrics)
    assert all(result.metrics[f"top1_{name}"] == 1 for name in names) and result.metrics["top1"] == 1
    assert result.metrics["top1_constant"] == pytest.approx(2 / 10)  # all classes but 3 have four images: the first
    assert result.counts == {
        "images": 10,
        "train_images": 19,
        "classes": 5,
        "steps": 60,
        "images_without_label": 2,
    }
    assert model.seen == [] and model.deep == [(20, 0, 1, 2, 3), (11, 0, 1, 2, 3)]
    assert set(result.details["top1"]) == set(names) and len(result.details["top1"]["last4"]) == len(RATES)


def test_files_instead_of_memory_change_nothing(stub, arrays, paint):
    rng = np.random.default_rng(0)

    def noisy(count, train=None):
        images = [rng.integers(0, 60, (16, 16, 3), dtype=np.uint8) for _ in range(count)]
        return arrays(images, labels=[at % 5 for at in range(count)], train=train)

    dataset = noisy(20, noisy(40))
    model = stub(torch.eye(5), mixing=torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    one, two = (linear_cls.run(model, dataset, memory=memory, steps=20) for memory in (1.0, 1e-9))
    assert one.metrics == two.metrics and one.per_image == two.per_image


def test_features_without_room_are_told_with_the_first_batch(stub, arrays, paint, monkeypatch):
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(5000))
    model = stub(torch.eye(5))
    with pytest.raises(UserError, match=r"linear_cls\.memory: 0\.00 GB of features are to be kept in memory"):
        linear_cls.run(model, classified(arrays, paint, 5, train=classified(arrays, paint, 200)))
    assert len(model.deep) == 1


def test_the_best_of_the_sweep_is_reported(stub, arrays, paint):
    train = classified(arrays, paint, 20)
    result = linear_cls.run(stub(torch.eye(5)), classified(arrays, paint, 10, train=train), lr=[1e-9, 0.5], steps=40)
    for name, scores in result.details["top1"].items():
        assert result.metrics[f"top1_{name}"] == max(scores.values())
        kept = result.per_image[f"top1_{name}"]["values"]
        assert len(kept) == 10 and np.mean(kept) == pytest.approx(result.metrics[f"top1_{name}"])
    assert np.mean(result.per_image["top1"]["values"]) == pytest.approx(result.metrics["top1"])
    assert result.details["top1"]["last1"]["1e-09"] < result.details["top1"]["last1"]["0.5"]


def test_features_are_the_last_blocks_newest_first_and_the_mean_patch_in_front(stub, arrays, paint):
    train = classified(arrays, paint, 5)
    seen = {}

    class Spy(SgdHeads):
        def train(self, features, labels, batch, steps):
            seen[len(seen)] = features

    model = stub(torch.eye(5) + 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_cls, "SgdHeads", Spy)
        linear_cls.run(model, classified(arrays, paint, 5, train=train), blocks=[1, 2])
    last = torch.eye(5) + 0.1  # CLS-1 of the last block, and its mean patch: images are of one class each
    for at, parts in enumerate(([last], [last, last], [last, 0.75 * last], [last, last, 0.75 * last])):
        torch.testing.assert_close(seen[at], torch.cat(parts, 1))


def test_few_blocks_the_other_cls_and_one_number(stub, arrays, paint):
    train = classified(arrays, paint, 10)
    dataset = classified(arrays, paint, 5, train=train)
    few = linear_cls.run(stub(torch.eye(5)), dataset, blocks=[3, 9], steps=2)
    assert {"top1_last3", "top1_last4"} < set(few.metrics)
    one = linear_cls.run(stub(torch.eye(5)), dataset, blocks=2, lr=0.1, cls=2, steps=60)
    assert set(one.metrics) == {"top1", "top1_last2", "top1_last2_patches", "top1_constant"}
    assert one.protocol["blocks"] == [2] and one.protocol["lr"] == [0.1] and one.metrics["top1"] == 1
    with pytest.raises(UserError, match=r"linear_cls\.cls = 3: the model has 2 CLS"):
        linear_cls.run(stub(torch.eye(5)), dataset, cls=3)


def test_a_class_that_was_never_trained_on_is_wrong(stub, arrays, paint):
    train = classified(arrays, paint, 8, classes=4)
    result = linear_cls.run(stub(torch.eye(5)), classified(arrays, paint, 10, train=train), steps=60)
    assert result.metrics["top1"] == pytest.approx(0.8) and result.counts["classes"] == 4


def test_ten_passes_at_least(stub, arrays, paint, monkeypatch):
    monkeypatch.setattr(linear_cls, "LEAST_STEPS", 3)
    train = classified(arrays, paint, 20)
    dataset = classified(arrays, paint, 5, train=train)
    assert linear_cls.run(stub(torch.eye(5)), dataset, batch=8).counts["steps"] == 30
    monkeypatch.setattr(linear_cls, "LEAST_STEPS", 50)
    assert linear_cls.run(stub(torch.eye(5)), dataset, batch=64).counts["steps"] == 50


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, r"linear_cls\.lr = \[0\]"),
        ({"lr": [0.1, "x"]}, r"linear_cls\.lr"),
        ({"lr": [0.1, 0.1]}, "repeats one"),
        ({"blocks": 0}, r"linear_cls\.blocks"),
        ({"batch": 0}, r"linear_cls\.batch = 0: it must be at least 1"),
        ({"steps": 0}, r"linear_cls\.steps = 0"),
        ({"memory": 0}, r"linear_cls\.memory = 0: it must be above 0"),
        ({"cls": 0}, r"linear_cls\.cls = 0"),
        ({"fit": "squre"}, "Did you mean 'square'"),
    ],
)
def test_bad_options(arrays, paint, options, words):
    dataset = classified(arrays, paint, 5, train=classified(arrays, paint, 5))
    with pytest.raises(UserError, match=words):
        check_evaluation({"linear_cls": options}, dataset)


def test_bad_data_and_models(stub, arrays, paint):
    with pytest.raises(UserError, match="'linear_cls' needs a train split"):
        check_evaluation(["linear_cls"], classified(arrays, paint, 5))
    blank = classified(arrays, paint, 2, missing={0, 1})
    with pytest.raises(UserError, match="no image of the train split has a label"):
        linear_cls.run(stub(torch.eye(5)), classified(arrays, paint, 5, train=blank))
    model = stub(torch.eye(5))
    model.image = type("Plain", (), {"patch": 4})()
    with pytest.raises(UserError, match="'linear_cls' reads the outputs of earlier blocks, which this model"):
        linear_cls.run(model, classified(arrays, paint, 5, train=classified(arrays, paint, 5)))
