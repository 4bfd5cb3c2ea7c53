import math
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.evals import knn
from distill.evals.knn import nearest, vote


@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_vote_equals_loops(seed, size, k):
    generator = torch.Generator().manual_seed(seed)
    memory = F.normalize(torch.randn(size, 4, generator=generator), dim=-1)
    queries = F.normalize(torch.randn(6, 4, generator=generator), dim=-1)
    labels = torch.randint(0, 3, (size,), generator=generator)
    found = vote(memory.split(7), labels, queries, (k, 200), 0.07, 3)
    for sweep, predicted in found.items():
        for query, answer in zip(queries, predicted):
            near = sorted(range(size), key=lambda i, q=query: -(q @ memory[i]).item())[:sweep]
            votes = [0.0] * 3
            for i in near:
                votes[labels[i]] += math.exp((query @ memory[i]).item() / 0.07)
            assert answer == votes.index(max(votes))


def test_nearer_neighbours_weigh_more():
    """One near neighbour of class 0 against two far ones of class 1: the temperature decides."""
    memory = F.normalize(torch.tensor([[1.0, 0.05], [0.6, 0.8], [0.6, 0.8]]), dim=-1)
    query, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0, 1, 1])
    assert vote([memory], labels, query, (3,), 0.07, 2)[3].tolist() == [0]
    assert vote([memory], labels, query, (3,), 10.0, 2)[3].tolist() == [1]


def test_blocks_of_queries_and_of_memory_join(monkeypatch):
    """Memory in parts smaller and larger than k, against one matrix of cosines."""
    memory = F.normalize(torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    labels = torch.arange(40) % 4
    whole = vote([memory], labels, memory, (5, 30), 0.07, 4)
    cosines, places = (memory @ memory.T).topk(30, dim=1)
    monkeypatch.setattr(knn, "ROWS", 7)
    for size in (1, 3, 13, 39, 40):
        near, at = nearest(memory.split(size), memory, 30)
        torch.testing.assert_close(near, cosines, rtol=0, atol=1e-6)
        assert torch.equal(at, places)
        found = vote(memory.split(size), labels, memory, (5, 30), 0.07, 4)
        assert all(torch.equal(found[k], whole[k]) for k in whole)


def test_files_and_blocks_change_no_score(stub, arrays, paint, monkeypatch):
    rng = np.random.default_rng(0)

    def noisy(count, train=None):
        images = [rng.integers(0, 60, (16, 16, 3), dtype=np.uint8) for _ in range(count)]
        return arrays(images, labels=[at % 5 for at in range(count)], train=train)

    dataset = noisy(30, noisy(90))
    model = stub(torch.eye(5), mixing=torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    plain = knn.run(model, dataset, k=[1, 20])
    assert 0 < plain.metrics["top1_cls1"] < 1
    monkeypatch.setattr(knn, "BLOCK", 7)
    bounded = knn.run(model, dataset, k=[1, 20], memory=1e-9)
    assert bounded.metrics == plain.metrics and bounded.per_image == plain.per_image


def test_features_without_room_are_told_with_the_first_batch(stub, arrays, paint, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 9, 1))
    model = stub(torch.eye(5))
    with pytest.raises(UserError, match=r"knn\.memory: the features need 0\.00 GB more"):
        knn.run(model, classified(arrays, paint, 5, train=classified(arrays, paint, 200)), memory=5e-6)
    assert len(model.seen) == 1  # of four batches: the 64 images of the first fit, all 205 do not


def classified(arrays, paint, count, train=None, missing=()):
    images = [paint(np.full((4, 4), i % 5), 4) for i in range(count)]
    return arrays(images, labels=[None if i in missing else i % 5 for i in range(count)], train=train)


def test_separable_classes_score_one_and_counts_are_told(stub, arrays, paint):
    train = classified(arrays, paint, 20, missing={3})
    dataset = classified(arrays, paint, 11, train=train, missing={0})
    result = knn.run(stub(torch.eye(5) + 0.1), dataset, k=[1, 3])
    for feature in ("cls1", "cls2", "patches"):
        assert result.metrics[f"top1_{feature}"] == 1
    assert result.metrics["top1_constant"] == pytest.approx(2 / 10)  # all classes but 3 have four images: the first
    assert result.counts == {"images": 10, "train_images": 19, "classes": 5, "images_without_label": 2}
    assert result.protocol["k"] == [1, 3] and result.protocol["temperature"] == 0.07


def test_top1_is_the_best_of_the_sweep(stub, arrays, paint):
    """With a constant feature every k answers the commonest of the nearest; k = 20 is all of the memory."""
    train = classified(arrays, paint, 20)
    result = knn.run(stub(torch.ones(5, 4)), classified(arrays, paint, 10, train=train))
    sweep = {k: v for k, v in result.metrics.items() if k.startswith("top1_cls1_k")}
    assert set(sweep) == {"top1_cls1_k10", "top1_cls1_k20", "top1_cls1_k100", "top1_cls1_k200"}
    assert result.metrics["top1_cls1"] == max(sweep.values())
    assert sweep["top1_cls1_k20"] == sweep["top1_cls1_k200"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "knn.k"),
        ({"k": []}, "knn.k"),
        ({"k": [5, "x"]}, "knn.k"),
        ({"temperature": 0}, "knn.temperature = 0"),
        ({"memory": 0}, r"knn\.memory = 0: it must be above 0"),
        ({"fit": "squre"}, "Did you mean 'square'"),
    ],
)
def test_bad_options(stub, arrays, paint, options, words):
    dataset = classified(arrays, paint, 5, train=classified(arrays, paint, 5))
    with pytest.raises(UserError, match=words):
        knn.run(stub(torch.eye(5)), dataset, **options)


def test_labels_and_train_split_are_required(stub, arrays, paint):
    model = stub(torch.eye(5))
    with pytest.raises(UserError, match="'knn' needs a train split"):
        knn.run(model, classified(arrays, paint, 5))
    train = classified(arrays, paint, 5)
    with pytest.raises(UserError, match=r"image 1 has the label 7, but the class list has 5 names"):
        knn.run(model, arrays([paint(np.zeros((4, 4), int), 4)] * 2, labels=[0, 7], train=train))
    train = classified(arrays, paint, 2, missing={0, 1})
    with pytest.raises(UserError, match="no image of the train split has a label"):
        knn.run(model, classified(arrays, paint, 5, train=train))
