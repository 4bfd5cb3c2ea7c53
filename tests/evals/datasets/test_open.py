import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from distill.config.schema import ScenesConfig
from distill.data.scenes import THINGS, SceneSource
from distill.errors import UserError
from distill.evals.datasets import open_dataset, parse
from distill.evals.datasets.base import spread
from distill.evals.run import check_evaluation


def test_scenes_have_everything():
    dataset = open_dataset("scenes:48", samples=6)
    assert (dataset.name, dataset.size, len(dataset)) == ("scenes:48 test", 48, 6)
    assert dataset.has == {"masks", "captions", "labels", "depth", "normals", "a train split"}
    assert dataset.image(2).size == (48, 48) and dataset.mask(2).shape == (48, 48)
    assert dataset.caption_fields == ["web", "synthetic", "detailed"] and dataset.caption_field == "synthetic"
    assert dataset.prompts == "plain"
    train = dataset.train()
    assert train.name == "scenes:48 train" and len(train) == 6
    assert not any(np.array_equal(np.array(train.image(i)), np.array(dataset.image(i))) for i in range(6))
    again = open_dataset("scenes:48", samples=6)
    assert np.array_equal(np.array(again.image(5)), np.array(dataset.image(5)))
    assert open_dataset("scenes:48?field=web").caption_field == "web"


def test_the_geometry_of_scenes_is_theirs_and_read_on_demand():
    dataset = open_dataset("scenes:48", samples=3)
    expected = SceneSource(ScenesConfig(size=48, count=3), "test")[2]
    example = dataset.load(2, depth=True, normals=True)
    assert example.mask is None
    assert np.array_equal(example.depth, expected.depth) and np.array_equal(example.normals, expected.normals)
    assert example.depth.dtype == example.normals.dtype == np.float32 and 0 < example.depth.max() <= 8
    plain = dataset.load(2)
    assert plain.depth is None and plain.normals is None and plain.domain is None


def test_scenes_can_be_drawn_and_evaluated_at_different_sizes():
    assert open_dataset("scenes", samples=1).image(0).size == (64, 64)
    assert open_dataset("scenes", samples=1, size=40).image(0).size == (40, 40)
    both = open_dataset("scenes:96", samples=1, size=64)
    assert both.image(0).size == (96, 96) and both.size == 64


def test_the_label_of_a_scene_is_its_largest_thing():
    dataset = open_dataset("scenes:48", samples=12)
    for index in range(12):
        mask = dataset.mask(index)
        areas = {c: (mask == c).sum() for c, name in enumerate(dataset.class_names) if name in THINGS}
        assert areas[dataset.label(index)] == max(areas.values()) > 0


@pytest.mark.parametrize("count", [1, 5, 64])
def test_spread_is_even(count):
    for samples in (None, 1, 3, count, count + 1):
        chosen = spread(count, samples)
        assert len(chosen) == (count if samples is None else min(samples, count))
        assert chosen == sorted(set(chosen)) and chosen[0] == 0 and chosen[-1] < count
        gaps = np.diff([*chosen, count])
        assert gaps.max() - gaps.min() <= 1


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_tar(path, count, masks=True, seed=0):
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for at in range(count):
            members = {
                "png": png(rng.integers(0, 255, (8, 10, 3), dtype=np.uint8)),
                "json": json.dumps({"alt": f"text {seed} {at}", "tags": ["a", "b"]}).encode(),
            }
            if masks:
                members["mask.png"] = png(np.full((8, 10), at % 2, np.uint8))
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{at:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_shards(tmp_path):
    (tmp_path / "test").mkdir()
    for at in range(2):
        write_tar(tmp_path / "test" / f"{at}.tar", 4, seed=at)
    write_tar(tmp_path / "train.tar", 3, seed=9)
    (tmp_path / "test" / "classes.json").write_text('["sky", "road"]')
    dataset = open_dataset(f"shards:{tmp_path}/test/{{0..1}}.tar?train={tmp_path}/train.tar&field=alt", size=32)
    assert dataset.has == {"masks", "captions", "a train split"} and len(dataset) == 8
    assert dataset.captions(5) == {"alt": ["text 1 1"], "tags": ["a", "b"]}
    assert dataset.image(0).size == (10, 8) and dataset.mask(5).max() == 1
    assert dataset.size == 32 and dataset.class_names == ["sky", "road"]
    assert dataset.train().captions(0)["alt"] == ["text 9 0"]
    few = open_dataset(f"shards:{tmp_path}/test/*.tar", samples=2)
    assert [few.captions(i)["alt"] for i in (0, 1)] == [["text 0 0"], ["text 1 0"]]


def test_shards_without_masks_names_or_files(tmp_path):
    write_tar(tmp_path / "plain.tar", 2, masks=False)
    write_tar(tmp_path / "masks.tar", 2)
    for name in ("plain", "masks"):  # masks without names for their values are of no use
        dataset = open_dataset(f"shards:{tmp_path}/{name}.tar")
        assert dataset.has == {"captions"}
        with pytest.raises(UserError, match=r"needs masks, but shards:.* has only images, captions"):
            dataset.mask(0)
    with pytest.raises(UserError, match="nope"):
        open_dataset(f"shards:{tmp_path}/nope-*.tar")
    with pytest.raises(UserError, match=r"Evaluation needs local tars, not 'pipe:cat x\.tar'"):
        open_dataset("shards:pipe:cat x.tar")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["road", "sky"], "calls the class 0 'road', not 'sky'"),
        (["sky", "road", "sea"], "has 3 classes, not 2"),
        ({"classes": ["sky", "road"], "ignore_index": 9}, "ignores the value 9, not 255"),
    ],
)
def test_a_train_split_of_other_classes_is_refused(tmp_path, classes, message):
    for name, content in (("test", ["sky", "road"]), ("train", classes)):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", 2)
        (tmp_path / name / "classes.json").write_text(json.dumps(content))
    spec = f"shards:{tmp_path}/test/0.tar?train={tmp_path}/train/0.tar"
    with pytest.raises(UserError, match=f"^shards:train, which is to be fitted on for shards:test, {message}"):
        check_evaluation(["linear_patch"], spec)
    check_evaluation(["locality"], spec)  # fits nothing


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scens", r"Unknown kind of dataset 'scens'\. Did you mean 'scenes'"),
        ("folder", "names no path. Write folder:PATH"),
        ("shards:", "names no path. Write shards:PATH"),
        ("scenes:big", "'scenes:big' is no size. Write scenes or scenes:PIXELS"),
        ("scenes:9", "32 to 448"),
        ("scenes?fild=web", r"Unknown option of the dataset 'scenes' 'fild'\. Did you mean 'field'"),
        ("scenes?field", "'field' has no value"),
        ("scenes?field=wbe", "Did you mean 'web'"),
    ],
)
def test_bad_strings(spec, message):
    with pytest.raises(UserError, match=message):
        open_dataset(spec)


def test_bad_numbers():
    with pytest.raises(UserError, match="samples = 0"):
        open_dataset("scenes", samples=0)
    with pytest.raises(UserError, match="size = -1"):
        open_dataset("scenes", size=-1)


def test_parse_keeps_colons_of_paths():
    assert parse("folder:C:/data?split=val&train=a") == ("folder", "C:/data", {"split": "val", "train": "a"})


def test_prompt_names_must_match_the_classes():
    from distill.evals.datasets.base import EvalDataset

    with pytest.raises(UserError, match="2 entries for 1 classes"):
        EvalDataset("d", 8, lambda i: None, 0, frozenset(), ["a"], ["a", "b"])


def test_scenes_of_a_size_that_cannot_be_rendered_are_refused_by_what_was_asked():
    for word, size in (("scenes:8", None), ("scenes", 512)):
        with pytest.raises(UserError, match=rf"at {size or 8} pixels\. Allowed: 32 to 448\. Write scenes:PIXELS"):
            open_dataset(word, samples=1, size=size)
    assert open_dataset("scenes:448", samples=1, size=512).size == 512
