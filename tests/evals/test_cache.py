"""What is kept of a split, in memory or in files, and features at the places of pixels."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.evals import cache
from distill.evals.cache import DenseCache, Store, centres, draw_pixels, interpolate


@pytest.mark.parametrize("memory", [1.0, 200e-9])
def test_what_is_kept_is_a_copy_wherever_it_lies(memory):
    store = Store(memory, "task.memory")
    given = [torch.rand(5, 4), torch.rand(7, 3).half(), torch.arange(60, dtype=torch.int16).reshape(5, 12)]
    kept = [store.keep(tensor) for tensor in given]
    copies = [tensor.clone() for tensor in given]
    for tensor in given:
        tensor.zero_()
    for one, other in zip(kept, copies):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert store.files == (0 if memory == 1 else 1)  # 80 + 42 bytes fit, 120 more do not


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="not Linux")
def test_many_tensors_share_a_few_files(monkeypatch):
    """Linux allows a process 65,530 maps; a split can have more labels than that."""
    monkeypatch.setattr(cache, "FIRST", 1 << 12)
    monkeypatch.setattr(cache, "LARGEST", 1 << 14)
    store = Store(1e-9, "task.memory")
    kinds = (torch.uint8, torch.int16, torch.float32, torch.float64, torch.bool)
    given = [torch.full((at % 7 + 1, 13), at % 2, dtype=kinds[at % 5]) for at in range(1000)]
    given[500] = torch.rand(3, 1 << 12)  # larger than a file that others share
    kept = [store.keep(tensor) for tensor in given]
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(kept, given))
    size = sum(tensor.numel() * tensor.element_size() + 64 for tensor in given)
    maps = sum(store.folder.name in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert maps == store.files <= size // (1 << 14) + 4


def test_what_has_no_room_is_told_before_it_is_made(monkeypatch):
    usage, memory = namedtuple("usage", "total used free"), namedtuple("memory", "available")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, 5 * 10**9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(3 * 10**9))
    Store(2, "knn.memory").expect(7 * 10**9)
    with pytest.raises(UserError, match=r"knn\.memory: the features need 6\.00 GB more in .*, which has 5\.00 GB free"):
        Store(2, "knn.memory").expect(8 * 10**9)
    Store(4, "knn.memory").expect(3 * 10**9)
    with pytest.raises(
        UserError, match=r"knn\.memory: 4\.00 GB of features .* memory, of which 3\.00 GB are free\. Lower"
    ):
        Store(4, "knn.memory").expect(8 * 10**9)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the disk sets nothing aside")
def test_a_disk_that_sets_nothing_aside_is_told(monkeypatch):
    def fail(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(UserError, match=r"depth\.memory: the features need 0\.00 GB more in"):
        Store(1e-9, "depth.memory").keep(torch.rand(100))


def test_a_full_disk_is_told_with_the_ways_out(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 9, 1))
    with pytest.raises(UserError, match=r"depth\.memory: the features need 0\.00 GB more in .* Raise depth\.memory"):
        Store(1e-9, "depth.memory").keep(torch.rand(100))


def filled(memory=1.0):
    kept = DenseCache(memory, "task.memory")
    for start, side in ((0, 2), (5, 3), (8, 2)):
        count = 5 if side == 2 else 3
        numbers = torch.arange(start, start + count, dtype=torch.float32)
        patches = numbers[:, None, None, None].expand(count, side, side, 4)
        labels = [torch.full((side * 2 + i % 2, side), int(n)) for i, n in enumerate(numbers)]
        kept.add([patches, numbers[:, None]], labels)
    return kept


def test_an_epoch_shows_every_image_once_with_its_own_label():
    images = filled()
    assert len(images) == 13
    batches = images.batches(4, torch.Generator().manual_seed(0), torch.device("cpu"))
    epochs = []
    for _ in range(2):  # ten images of one grid and three of the other: 4 + 4 + 2 and 3
        epoch = list(islice(batches, 4))
        for (patches, cls), labels in epoch:
            assert patches.dtype == torch.float32 and len(patches) == len(cls) == len(labels) <= 4
            for grid, token, label in zip(patches, cls, labels):
                assert (grid == token).all() and (label == token).all()
        shown = [int(number) for (_, cls), _ in epoch for number in cls]
        assert sorted(shown) == list(range(13))
        epochs.append(shown)
    assert epochs[0] != epochs[1]


def test_batches_depend_on_the_seed_alone():
    def order(seed, memory=1.0):
        batches = filled(memory).batches(3, torch.Generator().manual_seed(seed), torch.device("cpu"))
        return [cls.flatten().tolist() for (_, cls), _ in islice(batches, 6)]

    assert order(1) == order(1) == order(1, memory=1e-9)
    assert order(1) != order(2)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 17), st.integers(1, 17))
@settings(max_examples=30, deadline=None)
def test_features_at_pixel_centres_are_those_of_the_raised_map(rows, columns, height, width):
    patches = torch.randn(2, rows, columns, 3, generator=torch.Generator().manual_seed(0))
    raised = F.interpolate(patches.permute(0, 3, 1, 2), size=(height, width), mode="bilinear", align_corners=False)
    at = torch.arange(height * width)
    places = centres(at // width, at % width, height, width).expand(2, -1, -1)
    torch.testing.assert_close(interpolate(patches, places), raised.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_drawn_pixels_have_the_label_of_their_place():
    labels = [torch.arange(15).reshape(3, 5), torch.arange(100, 128).reshape(7, 4)]
    places, values = draw_pixels(labels, 50, torch.Generator().manual_seed(0))
    assert places.shape == (2, 50, 2) and values.shape == (2, 50)
    for spots, found, label in zip(places, values, labels):
        height, width = label.shape
        columns = ((spots[:, 0] + 1) / 2 * width).long()
        rows = ((spots[:, 1] + 1) / 2 * height).long()
        assert torch.equal(label[rows, columns], found)
        assert len(found.unique()) > 10


def test_drawn_pixels_of_labels_with_channels():
    normals = torch.rand(3, 4, 3)
    _, values = draw_pixels([normals], 6, torch.Generator().manual_seed(0))
    assert values.shape == (1, 6, 3)
    assert all((normals.flatten(0, 1) == value).all(1).any() for value in values[0])
