"""What is noticed of a dataset: every file that its images and labels come from."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.evals.datasets import contents, open_dataset
from distill.evals.datasets.contents import seen


def save(path, value=0, dtype=np.uint8, shape=(6, 8, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, dtype)).save(path)


def mask(path, value=1, dtype=np.uint8):
    save(path, value, dtype, (6, 8))


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def ade(root):
    save(root / "images/validation/a.jpg")
    mask(root / "annotations/validation/a.png")
    return f"ade20k:{root}"


def voc(root):
    save(root / "JPEGImages/a.jpg")
    mask(root / "SegmentationClass/a.png")
    text(root / "ImageSets/Segmentation/val.txt", "a\n")
    return f"voc20:{root}"


def cityscapes(root):
    save(root / "leftImg8bit/val/bonn/b_leftImg8bit.png")
    mask(root / "gtFine/val/bonn/b_gtFine_labelIds.png", 7)
    return f"cityscapes:{root}"


def stuff(root):
    save(root / "val2017/1.jpg")
    mask(root / "stuffthingmaps/val2017/1.png")
    return f"coco_stuff:{root}"


def things(root):
    save(root / "val2017/1.jpg")
    image = {"id": 1, "file_name": "1.jpg", "height": 6, "width": 8}
    text(root / "annotations/instances_val2017.json", json.dumps({"images": [image], "annotations": []}))
    return f"coco_object:{root}"


def imagenet(root):
    save(root / "val/n01440764/a.JPEG")
    return f"imagenet:{root}"


def karpathy(root):
    save(root / "images/a.jpg")
    row = {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a dog"}]}
    text(root / "dataset_flickr30k.json", json.dumps({"images": [row]}))
    return f"flickr30k:{root}"


def docci(root):
    save(root / "images/a.jpg")
    row = {"split": "test", "image_file": "a.jpg", "description": "a dog"}
    text(root / "docci_descriptions.jsonlines", json.dumps(row))
    return f"docci:{root}"


def nyu(root):
    scene = root / "official_splits/test/office"
    save(scene / "rgb_00001.jpg")
    mask(scene / "sync_depth_00001.png", 900, np.uint16)
    save(scene / "normal_00001.png")
    return f"nyuv2:{root}"


def navi(root):
    for scene in ("wild_set", "multiview_00"):
        save(root / "car" / scene / "images/000.jpg")
        mask(root / "car" / scene / "depth/000.png", 900, np.uint16)
    return f"navi:{root}"


def uned(root):
    save(root / "images/a.jpg")
    text(root / "info_files/cars/test.json", json.dumps([{"path": "a.jpg", "class_id": 1}]))
    return f"uned:{root}"


def class_folders(root):
    save(root / "test/cat/a.png")
    return f"folder:{root}"


def dense_folder(root):
    save(root / "images/a.png")
    mask(root / "masks/a.png")
    mask(root / "depth/a.png", 900, np.uint16)
    save(root / "normals/a.png")
    text(root / "classes.json", '["sky", "road"]')
    return f"folder:{root}"


def caption_file(root):
    save(root / "a.png")
    mask(root / "m.png")
    row = {"image": "a.png", "mask": "m.png", "split": "test", "captions": {"alt": "a dog"}}
    text(root / "captions.jsonl", json.dumps(row))
    text(root / "classes.json", '["sky", "road"]')
    return f"folder:{root}"


def table(root):
    save(root / "a.png")
    text(root / "a.csv", "image,caption\na.png,a dog\n")
    return f"csv:{root}/a.csv"


def shards(root):
    save(root / "tmp/a.png")
    text(root / "tmp/a.txt", "a dog")
    with tarfile.open(root / "a.tar", "w") as tar:
        for name in ("a.png", "a.txt"):
            tar.add(root / "tmp" / name, name)
    shutil.rmtree(root / "tmp")
    return f"shards:{root}/*.tar"


KINDS = (ade, voc, cityscapes, stuff, things, imagenet, karpathy, docci, nyu, navi, uned, class_folders, dense_folder,
         caption_file, table, shards)  # fmt: skip
LISTS = (".txt", ".csv", ".jsonl", ".jsonlines", "classes.json", "dataset_flickr30k.json", "test.json")


def looked(spec):
    found = seen(open_dataset(spec, size=16))
    return found["contents"], found["files"]


@pytest.mark.parametrize("write", KINDS)
def test_every_file_that_is_changed_is_noticed(tmp_path, write):
    spec = write(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "multiview" not in str(path)]
    before = looked(spec)
    assert looked(spec) == before
    for path in files:
        if path.name.endswith(LISTS):
            continue  # what they say is noticed, not when they were written
        stamp = path.stat()
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
        after = looked(spec)
        assert after[1] != before[1] and after[0] == before[0], path
        before = after


@pytest.mark.parametrize(
    ("write", "file", "old", "new"),
    [
        (karpathy, "dataset_flickr30k.json", "a dog", "a cat"),
        (docci, "docci_descriptions.jsonlines", "a dog", "a cat"),
        (table, "a.csv", "a dog", "a cat"),
        (caption_file, "captions.jsonl", "a dog", "a cat"),
        (dense_folder, "classes.json", "road", "lake"),
    ],
)
def test_what_lists_say_is_part_of_the_contents(tmp_path, write, file, old, new):
    spec = write(tmp_path)
    before = looked(spec)
    path = tmp_path / file
    path.write_text(path.read_text().replace(old, new))
    assert looked(spec)[0] != before[0]


def test_contents_are_the_same_wherever_the_data_lies(tmp_path):
    here, there = tmp_path / "here/pets", tmp_path / "there/pets"
    spec = class_folders(here)
    shutil.copytree(here, there)
    os.utime(there / "test/cat/a.png", ns=(0, 0))
    one, two = looked(spec), looked(f"folder:{there}")
    assert one[0] == two[0] and one[1] != two[1]
    (there / "test/cat/a.png").write_bytes((there / "test/cat/a.png").read_bytes() + b"0")
    assert looked(f"folder:{there}")[0] != one[0]


def test_which_captions_are_used_is_no_part_of_the_contents(tmp_path):
    assert looked("scenes:32?field=web") == looked("scenes:32")
    spec = caption_file(tmp_path)
    assert looked(f"{spec}?field=alt") == looked(spec)


def test_large_splits_are_looked_at_evenly(tmp_path, monkeypatch):
    for at in range(6):
        save(tmp_path / f"test/cat/{at}.png")
    calls = []
    original = Path.stat
    monkeypatch.setattr(contents, "LOOKED_AT", 3)
    dataset = open_dataset(f"folder:{tmp_path}", size=16)
    monkeypatch.setattr(Path, "stat", lambda path, **more: (calls.append(path.name), original(path, **more))[1])
    assert seen(dataset)["images"] == 6 and [name for name in calls if name.endswith(".png")] == [
        "0.png",
        "2.png",
        "4.png",
    ]
    calls.clear()
    assert seen(dataset) is seen(dataset) and not calls


def test_a_missing_file_is_left_to_who_loads_it(tmp_path):
    spec = uned(tmp_path)
    before = looked(spec)
    (tmp_path / "images/a.jpg").unlink()
    assert looked(spec) != before


def test_scenes_are_not_drawn_for_it():
    dataset = open_dataset("scenes:32", samples=4)
    dataset.item = None
    assert seen(dataset)["images"] == 4
