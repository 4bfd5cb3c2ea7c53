"""Batches: stacked views, pixels in [0, 1] on the device, failures carried along."""

import pickle

import numpy as np
import pytest
import torch

from distill.data.sample import SampleError
from distill.views.batch import Views, collate


def views(index: int, local: int = 2) -> Views:
    rng = np.random.default_rng(index)
    return Views(
        global_=rng.integers(0, 256, (3, 8, 8), dtype=np.uint8),
        local=rng.integers(0, 256, (local, 3, 4, 4), dtype=np.uint8),
        mask=rng.random(16) < 0.5,
        tokens=rng.integers(0, 9, (2, 5)),
        valid=rng.random((2, 5)) < 0.5,
        index=index,
        cut=index % 2,
    )


def test_collate_stacks_every_field_in_order():
    items = [views(i) for i in (7, 3, 5)]
    batch = collate(items, [SampleError("a.tar", "k", "broken")])
    assert len(batch) == 3
    for name in ("global_", "local", "mask", "tokens", "valid"):
        stacked = getattr(batch, name)
        for row, item in zip(stacked, items):
            np.testing.assert_array_equal(row.numpy(), getattr(item, name))
    assert batch.index.tolist() == [7, 3, 5]
    assert batch.cut == 3
    assert [str(f) for f in batch.failures] == ["a.tar: k: broken"]
    types = [t.dtype for t in (batch.global_, batch.local, batch.mask, batch.tokens, batch.valid, batch.index)]
    assert types == [torch.uint8, torch.uint8, torch.bool, torch.int64, torch.bool, torch.int64]


def test_pixels_become_floats_between_0_and_1_with_locals_image_major():
    items = [views(i) for i in range(3)]
    batch = collate(items)
    images, locals_ = batch.images(), batch.locals_()
    assert images.dtype == locals_.dtype == torch.float32
    np.testing.assert_allclose(images[2].numpy(), items[2].global_ / 255, rtol=1e-6)
    assert locals_.shape == (6, 3, 4, 4)
    np.testing.assert_allclose(locals_[1 * 2 + 1].numpy(), items[1].local[1] / 255, rtol=1e-6)
    assert batch.global_.dtype == torch.uint8  # the stored pixels are not changed


def test_no_local_crops_give_an_empty_tensor():
    assert collate([views(0, local=0), views(1, local=0)]).locals_().shape == (0, 3, 4, 4)


def test_moving_keeps_everything_that_is_not_a_tensor():
    batch = collate([views(1)], [SampleError("s", "k", "r")])
    moved = batch.to("meta", non_blocking=True)
    assert moved.global_.device.type == moved.valid.device.type == "meta"
    assert (moved.cut, moved.failures) == (batch.cut, batch.failures)
    assert batch.global_.device.type == "cpu"


def test_a_batch_survives_the_trip_from_a_worker():
    batch = pickle.loads(pickle.dumps(collate([views(1), views(2)], [SampleError("s", "k", "r")])))
    assert torch.equal(batch.global_, collate([views(1), views(2)]).global_)
    assert (batch.failures[0].shard, batch.failures[0].key, batch.failures[0].reason) == ("s", "k", "r")


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        collate([])
