from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.config.schema import ScenesConfig
from distill.data.sample import Sample, Source
from distill.data.scenes import REGIONS, SCENE_CLASSES, THINGS, SceneSource, World, caption_corpus
from distill.errors import UserError

DIGEST = """
import hashlib
from distill.config.schema import ScenesConfig
from distill.data.scenes import SceneSource
source = SceneSource(ScenesConfig(size=48, count=64, seed=3), "test")
digest = hashlib.sha256()
for index in (9, 2, 63, 17):
    sample = source[index]
    for array in (sample.image, sample.mask, sample.depth, sample.normals):
        digest.update(array.tobytes())
    digest.update(repr(sample.captions).encode())
print(digest.hexdigest())
"""


def same(a: Sample, b: Sample) -> bool:
    arrays = zip((a.image, a.mask, a.depth, a.normals), (b.image, b.mask, b.depth, b.normals))
    return a.key == b.key and a.captions == b.captions and all(np.array_equal(x, y) for x, y in arrays)


def test_is_a_source_of_complete_samples(make_source):
    source = make_source(size=40, count=5, seed=7)
    assert isinstance(source, Source)
    assert len(source) == 5
    sample = source[4]
    assert (sample.key, sample.shard) == ("7-train-4", "scenes")
    assert sample.image.shape == (40, 40, 3)
    assert sample.image.dtype == np.uint8
    assert sample.mask.shape == (40, 40)
    assert sample.mask.dtype == np.uint8
    assert sample.depth.shape == (40, 40)
    assert sample.depth.dtype == np.float32
    assert sample.normals.shape == (40, 40, 3)
    assert sample.normals.dtype == np.float32
    assert set(sample.captions) == {"web", "synthetic", "detailed"}
    assert all(len(texts) == 1 and texts[0] for texts in sample.captions.values())


def test_classes_are_single_plain_words(make_source):
    assert make_source().classes == SCENE_CLASSES
    assert len(THINGS) >= 12
    assert len(REGIONS) == 6
    assert len(set(SCENE_CLASSES)) == len(SCENE_CLASSES) == len(THINGS) + len(REGIONS)
    assert all(name.isalpha() and name.islower() for name in SCENE_CLASSES)


def test_same_in_another_process():
    printed = [
        subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    ]
    assert printed[0] == printed[1]
    source = SceneSource(ScenesConfig(size=48, count=64, seed=3), "test")
    digest = hashlib.sha256()
    for index in (9, 2, 63, 17):
        sample = source[index]
        for array in (sample.image, sample.mask, sample.depth, sample.normals):
            digest.update(array.tobytes())
        digest.update(repr(sample.captions).encode())
    assert printed[0].strip() == digest.hexdigest()


def test_order_of_access_and_cache_change_nothing(make_source):
    plain, cached = make_source(), make_source(cache=True)
    forward = [plain[index] for index in range(12)]
    backward = [cached[index] for index in reversed(range(12))][::-1]
    again = [cached[index] for index in range(12)]
    for a, b, c in zip(forward, backward, again):
        assert same(a, b)
        assert same(a, c)


def test_a_changed_sample_does_not_spoil_the_cache(make_source):
    source = make_source(cache=True)
    sample = source[1]
    sample.image[:] = 0
    sample.mask[:] = 0
    sample.captions["web"].append("mine")
    assert same(source[1], make_source()[1])


def test_splits_and_seeds_are_different_streams(make_source):
    def prints(source: SceneSource) -> set[bytes]:
        return {source[index].image.tobytes() for index in range(100)}

    train, test, other = (
        prints(source) for source in (make_source(size=32), make_source("test", size=32), make_source(size=32, seed=1))
    )
    assert len(train) == len(test) == len(other) == 100
    assert not train & test
    assert not train & other


def test_dense_labels_are_optional_and_change_nothing_else(make_source):
    lean, full = make_source(dense=False)[3], make_source()[3]
    assert lean.depth is None
    assert lean.normals is None
    assert np.array_equal(lean.image, full.image)
    assert np.array_equal(lean.mask, full.mask)
    assert lean.captions == full.captions


def test_corpus_is_the_captions_of_the_samples(make_source):
    source = make_source("test", size=32, seed=5)
    texts = [text for index in range(40) for field in source[index].captions.values() for text in field]
    assert source.caption_corpus(40) == texts
    assert caption_corpus(40, seed=5, split="test") == texts


def test_another_world_gives_other_scenes(make_source):
    world = World(things=(1, 1))
    source = make_source(world=world, size=32)
    for index in range(20):
        shown = set(np.unique(source[index].mask)) & set(range(len(THINGS)))
        assert len(shown) == 1


@pytest.mark.parametrize(
    ("change", "split", "word"),
    [
        ({"size": 31}, "train", "32 to 448"),
        ({"size": 449}, "train", "32 to 448"),
        ({"count": 0}, "train", "1 or more"),
        ({"seed": -1}, "train", "0 or more"),
        ({}, "tests", "Did you mean 'test'"),
    ],
)
def test_bad_settings_get_one_line(change, split, word):
    with pytest.raises(UserError, match=word) as caught:
        SceneSource(ScenesConfig(**change), split)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [-1, 4096])
def test_index_out_of_range(make_source, index):
    with pytest.raises(IndexError, match=str(index)):
        make_source()[index]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    index=st.integers(0, 10**9 - 1),
    size=st.one_of(st.integers(32, 160), st.just(448)),
    split=st.sampled_from(("train", "test")),
)
def test_any_scene_is_sound(seed, index, size, split):
    cfg = ScenesConfig(size=size, count=10**9, seed=seed, cache=False)
    sample = SceneSource(cfg, split)[index]
    assert same(sample, SceneSource(cfg, split)[index])
    assert sample.image.shape == (size, size, 3)
    assert sample.mask.max() < len(SCENE_CLASSES)
    assert np.isfinite(sample.depth).all()
    assert sample.depth.min() > 0
    np.testing.assert_allclose(np.linalg.norm(sample.normals, axis=-1), 1, atol=1e-5)
    assert sample.normals[..., 2].min() > 0  # every surface faces the viewer
    named = set(sample.captions["synthetic"][0].replace(",", " ").replace(".", " ").split())
    assert {SCENE_CLASSES[number] for number in np.unique(sample.mask)} <= named
