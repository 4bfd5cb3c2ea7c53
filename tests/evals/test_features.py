import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.evals import features
from distill.evals.features import Needs, encode_both, run_pass, target_size, to_tensor


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_resize_rule(height, width, size, patch):
    h, w = target_size(height, width, size, patch, "keep")
    assert h % patch == 0 and w % patch == 0
    assert min(h, w) - patch < size <= min(h, w)  # the short side: rounded up, by less than a patch
    for new, old in ((h, height), (w, width)):
        assert new - patch - 0.51 < old * size / min(height, width) < new + 0.51
    assert target_size(height, width, size, patch, "square") == (min(h, w), min(h, w))


def test_pixels_are_untouched_at_their_own_size():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    tensor = to_tensor(Image.fromarray(pixels), 8, 12)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, torch.tensor(pixels).permute(2, 0, 1) / 255)
    assert to_tensor(Image.fromarray(pixels), 16, 4).shape == (3, 16, 4)


class Collect:
    def __init__(self, **needs):
        self.needs, self.batches = Needs(**needs), []

    def __call__(self, batch):
        self.batches.append(batch)

    @property
    def indices(self):
        return [example.index for batch in self.batches for example in batch.examples]


def mixed(arrays, count=11):
    rng = np.random.default_rng(0)
    shapes = [(16, 16), (16, 24), (20, 16)]
    return arrays([rng.integers(0, 50, (*shapes[i % 3], 3), dtype=np.uint8) for i in range(count)])


def test_every_reader_sees_every_image_once_with_its_features(stub, arrays):
    dataset, model = mixed(arrays), stub(torch.eye(5), value_shift=1)
    keep, square = Collect(values=True), Collect(fit="square")
    seconds = run_pass(model, dataset, [keep, square], batch=3)
    assert sorted(keep.indices) == sorted(square.indices) == list(range(11))
    assert set(seconds) == {id(keep), id(square)}
    for reader in (keep, square):
        for batch in reader.batches:
            assert 1 <= len(batch.examples) <= 3
            for at, example in enumerate(batch.examples):
                image = dataset.image(example.index)
                shape = target_size(image.height, image.width, 16, 4, reader.needs.fit)
                assert torch.equal(batch.images[at], to_tensor(image, *shape))
                cls, patches = model.encode_image(batch.images[at : at + 1])
                assert torch.equal(batch.patches[at], patches[0]) and torch.equal(batch.cls[at], cls[0])
    assert all(torch.equal(b.values, model.encode_image(b.images, values=True)[1]) for b in keep.batches)
    assert all(batch.images.shape[2:] == (16, 16) for batch in square.batches)


def test_readers_that_want_the_same_size_share_the_encoding(stub, arrays, paint):
    dataset = arrays([paint(np.zeros((4, 4), int), 4)] * 6)
    model = stub(torch.eye(5))
    run_pass(model, dataset, [Collect(), Collect(fit="square"), Collect()], batch=4)
    assert model.seen == [(4, 3, 16, 16), (2, 3, 16, 16)]


def test_nothing_is_encoded_or_loaded_that_no_reader_needs(stub, arrays, paint):
    images = [paint(np.zeros((4, 4), int), 4)] * 2
    dataset = arrays(images, [np.zeros((3, 3), int)] * 2)  # masks of a wrong size: loading one would raise
    model, reader = stub(torch.eye(5)), Collect(encode=False)
    run_pass(model, dataset, [reader])
    assert model.seen == [] and reader.batches[0].patches is None
    assert all(example.mask is None for example in reader.batches[0].examples)


def test_images_of_rare_shapes_do_not_pile_up(stub, arrays, monkeypatch):
    monkeypatch.setattr(features, "PENDING_IMAGES", 4)
    dataset, reader = mixed(arrays, 30), Collect()
    run_pass(stub(torch.eye(5)), dataset, [reader], batch=100)
    assert sorted(reader.indices) == list(range(30))
    assert len(reader.batches) > 3 and max(len(batch.examples) for batch in reader.batches) <= 5


def test_progress_counts_images(stub, arrays):
    told = []
    run_pass(stub(torch.eye(5)), mixed(arrays), [Collect(), Collect(fit="square")], progress=told.append)
    assert sum(told) == 11


@pytest.mark.parametrize("shape", [(64, 64), (32, 48)])
def test_one_pass_gives_what_two_give(tiny_model, shape):
    images = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(0))
    cls, final, value = encode_both(tiny_model, images)
    assert torch.equal(cls, tiny_model.encode_image(images)[0])
    assert torch.equal(final, tiny_model.encode_image(images)[1])
    torch.testing.assert_close(value, tiny_model.encode_image(images, values=True)[1], rtol=0, atol=1e-6)
    assert not torch.allclose(final, value)
    assert final.shape == (3, shape[0] // 16, shape[1] // 16, 16)
