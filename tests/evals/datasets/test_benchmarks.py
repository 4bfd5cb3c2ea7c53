"""Each benchmark, written small in its publishers' layout, and read back."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from distill.errors import UserError
from distill.evals.datasets import open_dataset
from distill.evals.datasets.catalogue import BENCHMARKS
from distill.evals.datasets.coco import CATEGORY, STUFF


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, options.pop("dtype", np.uint8))).save(path, **options)


def photo(path, value=0, height=6, width=8):
    save(path, np.full((height, width, 3), value))


def rows(*values, height=6, width=8):
    """A mask `[height, width]` whose rows take the values in turn."""
    return np.resize(np.array(values), height)[:, None].repeat(width, 1)


@pytest.fixture
def ade(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, count in (("training", 3), ("validation", 2)):
        for at in range(count):
            photo(root / f"images/{split}/ADE_{split}_{at}.jpg", at * 40)
            save(root / f"annotations/{split}/ADE_{split}_{at}.png", rows(0, 1, 150))
    return root


def test_ade20k(ade):
    dataset = open_dataset(f"ade20k:{ade}")
    assert (dataset.name, len(dataset), dataset.size, dataset.prompts) == ("ade20k validation", 2, 448, "tcl")
    assert np.array_equal(dataset.mask(0), rows(255, 0, 149))
    assert (dataset.class_names[0], dataset.class_names[149], len(dataset.class_names)) == ("wall", "flag", 150)
    assert len(dataset.train()) == 3 and dataset.train().name == "ade20k training"
    assert dataset.has == {"masks", "a train split"}
    assert len(open_dataset(f"ade20k:{ade.parent}", samples=1)) == 1  # the folder the archive was unpacked in
    save(ade / "annotations/validation/ADE_validation_0.png", rows(151))
    with pytest.raises(UserError, match="the mask of ADE_validation_0 has the value 150, but the class list has 150"):
        dataset.mask(0)


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    for stem, values in {"a": (0, 1, 20), "b": (255, 0, 15), "c": (2,)}.items():
        photo(root / f"JPEGImages/{stem}.jpg")
        mask = Image.fromarray(rows(*values).astype(np.uint8)).convert("P")
        mask.putpalette([at % 256 for at in range(768)])
        (root / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(root / f"SegmentationClass/{stem}.png")
        save(root / f"SegmentationClassAug/{stem}.png", rows(3))
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, stems in {"train": "c\n", "val": "a\nb\n", "trainaug": "a\nc\n"}.items():
        (lists / f"{name}.txt").write_text(stems)
    return root


def test_voc(voc):
    things, whole = open_dataset(f"voc20:{voc}"), open_dataset(f"voc21:{voc.parent}")
    assert np.array_equal(things.mask(0), rows(255, 0, 19)) and np.array_equal(whole.mask(0), rows(0, 1, 20))
    assert np.array_equal(things.mask(1), rows(255, 255, 14)) and np.array_equal(whole.mask(1), rows(255, 0, 15))
    assert len(things.class_names) == 20 and whole.class_names[:2] == ["background", "aeroplane"]
    assert [len(whole), len(whole.train())] == [2, 1]
    augmented = open_dataset(f"voc21:{voc.parents[1]}?train=trainaug").train()
    assert len(augmented) == 2 and np.array_equal(augmented.mask(1), rows(3))


def test_vocs_masks_in_its_colours(voc):
    """The colours of the development kit: aeroplane, tv and border as its documentation shows them."""
    colours = {0: (0, 0, 0), 1: (128, 0, 0), 20: (0, 64, 128), 255: (224, 224, 192), 15: (192, 128, 128)}
    coded = np.array([colours[v] for v in rows(0, 1, 20, 255, 15).ravel()]).reshape(6, 8, 3)
    save(voc / "SegmentationClass/a.png", coded)
    assert np.array_equal(open_dataset(f"voc21:{voc}").mask(0), rows(0, 1, 20, 255, 15))
    coded[3, 4] = (1, 2, 3)
    save(voc / "SegmentationClass/a.png", coded)
    with pytest.raises(UserError, match=r"a\.png has the colour \(1, 2, 3\) in row 3, column 4, which stands for no"):
        open_dataset(f"voc21:{voc}").mask(0)


def test_pascal_context(tmp_path):
    root = tmp_path / "VOC2010"
    photo(root / "JPEGImages/x.jpg")
    save(root / "SegmentationClassContext/x.png", rows(0, 1, 59))
    (root / "ImageSets/SegmentationContext").mkdir(parents=True)
    (root / "ImageSets/SegmentationContext/val.txt").write_text("x\n")
    without, whole = open_dataset(f"pascal_context59:{tmp_path}"), open_dataset(f"pascal_context60:{root}")
    assert np.array_equal(without.mask(0), rows(255, 0, 58)) and np.array_equal(whole.mask(0), rows(0, 1, 59))
    assert without.class_names == whole.class_names[1:] and len(without.class_names) == 59
    assert without.has == {"masks"}  # no train.txt here


@pytest.fixture
def cityscapes(tmp_path):
    for split, stem in (("train", "ulm_1"), ("val", "bonn_1"), ("val", "bonn_2"), ("val", "bonn_3")):
        city = stem[:-2]
        photo(tmp_path / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
        save(tmp_path / f"gtFine/{split}/{city}/{stem}_gtFine_labelIds.png", rows(0, 7, 33, 6))
    save(tmp_path / "gtFine/val/bonn/bonn_2_gtFine_labelTrainIds.png", rows(255, 0, 18, 255))
    (tmp_path / "gtFine/val/bonn/bonn_3_gtFine_labelIds.png").unlink()
    coded = {0: (0, 0, 0), 7: (128, 64, 128), 33: (119, 11, 32), 6: (81, 0, 81)}
    pixels = np.array([(*coded[v], 255) for v in rows(0, 7, 33, 6).ravel()]).reshape(6, 8, 4)
    save(tmp_path / "gtFine/val/bonn/bonn_3_gtFine_color.png", pixels)
    return tmp_path


def test_cityscapes_in_all_its_codings(cityscapes):
    dataset = open_dataset(f"cityscapes:{cityscapes}")
    assert len(dataset) == 3 and len(dataset.train()) == 1
    for index in range(3):
        assert np.array_equal(dataset.mask(index), rows(255, 0, 18, 255))
    save(cityscapes / "gtFine/val/bonn/bonn_1_gtFine_labelIds.png", rows(40))
    with pytest.raises(UserError, match=r"labelIds\.png has the value 40, which stands for no class"):
        dataset.mask(0)
    (cityscapes / "gtFine/val/bonn/bonn_1_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match=r"Expected in .*: bonn_1_gtFine_ with one of labelTrainIds, labelIds, color"):
        open_dataset(f"cityscapes:{cityscapes}")


@pytest.fixture
def coco(tmp_path):
    for name in ("000000000139", "000000000285"):
        photo(tmp_path / f"images/val2017/{name}.jpg")
        save(tmp_path / f"stuffthingmaps/val2017/{name}.png", rows(0, 91, 181, 89, 255))
    return tmp_path


def test_coco_from_pixel_maps(coco):
    stuff, things = open_dataset(f"coco_stuff:{coco}"), open_dataset(f"coco_object:{coco}")
    assert np.array_equal(stuff.mask(0), rows(0, 80, 170, 79, 255))
    assert np.array_equal(things.mask(0), rows(1, 0, 0, 80, 0))
    assert [stuff.class_names[i] for i in (0, 79, 80, 170)] == ["person", "toothbrush", "banner", "wood"]
    assert [things.class_names[i] for i in (0, 1, 80)] == ["background", "person", "toothbrush"]
    save(coco / "stuffthingmaps/val2017/000000000139.png", rows(11))  # a street sign: annotated nowhere
    with pytest.raises(UserError, match="has the value 11, which stands for no class"):
        stuff.mask(0)


def test_cocos_numbers_have_eleven_gaps():
    """From COCO's documentation: ids 1 to 182 without 12, 26, 29, 30, 45, 66, 68, 69, 71, 83 and 91."""
    assert len(STUFF) == 171 and sorted(STUFF.values()) == list(range(171))
    missing = {id for id in range(1, 183) if id - 1 not in STUFF}
    assert missing == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
    assert len(CATEGORY) == 80 and (CATEGORY[1], CATEGORY[13], CATEGORY[90]) == (1, 12, 80)


def test_coco_object_from_annotations(tmp_path):
    """A person's square under a smaller cup's, a crowd of run lengths, and an image without anything."""
    for name in ("a", "b"):
        photo(tmp_path / f"val2017/{name}.jpg", height=10, width=12)
    square = [[2, 2, 10, 2, 10, 8, 2, 8]]
    crowd = np.zeros((10, 12), np.uint8)
    crowd[9] = 1
    counts = [9, *[1, 9] * 11, 1]
    notes = [
        {"id": 3, "image_id": 1, "category_id": 1, "iscrowd": 1, "area": 12, "segmentation": {"counts": counts}},
        {
            "id": 1,
            "image_id": 1,
            "category_id": 47,
            "iscrowd": 0,
            "area": 4,
            "segmentation": [[4, 4, 6, 4, 6, 6, 4, 6]],
        },
        {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 48, "segmentation": square},
    ]
    notes[0]["segmentation"]["size"] = [10, 12]
    images = [{"id": at + 1, "file_name": f"{name}.jpg", "height": 10, "width": 12} for at, name in enumerate("ab")]
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations/instances_val2017.json"
    file.write_text(json.dumps({"images": images, "annotations": notes}))
    dataset = open_dataset(f"coco_object:{tmp_path}")
    expected = np.zeros((10, 12), int)
    expected[2:8, 2:10] = 1
    expected[4:6, 4:6] = 42  # cup
    expected[9] = 255
    assert dataset.class_names[42] == "cup"
    assert np.array_equal(dataset.mask(0), expected)
    assert dataset.mask(1).max() == 0
    notes[1]["category_id"] = 12
    file.write_text(json.dumps({"images": images, "annotations": notes}))
    with pytest.raises(UserError, match="Annotation 1 has category 12, which is none of COCO's 80 things"):
        open_dataset(f"coco_object:{tmp_path}").mask(0)


TENCH, SHARK, JUNCO = "n01440764", "n01484850", "n01534433"  # labels 0, 2 and 13


def test_imagenet(tmp_path):
    for split, wordnet in (("val", TENCH), ("val", SHARK), ("train", TENCH)):
        photo(tmp_path / f"{split}/{wordnet}/ILSVRC2012_{wordnet}.JPEG", 9)
    dataset = open_dataset(f"imagenet:{tmp_path}")
    assert (dataset.name, dataset.prompts, dataset.has) == ("imagenet val", "clip80", {"labels", "a train split"})
    assert [dataset.label(i) for i in range(2)] == [0, 1] and dataset.class_names == ["tench", "great white shark"]
    assert dataset.train().label(0) == 0


def test_imagenets_labels_are_the_same_classes_in_every_split(tmp_path):
    for split, wordnet in (("val", SHARK), ("val", JUNCO), ("train", TENCH), ("train", SHARK)):
        photo(tmp_path / f"{split}/{wordnet}/x.JPEG")
    dataset = open_dataset(f"imagenet:{tmp_path}")
    assert dataset.class_names == dataset.train().class_names == ["tench", "great white shark", "junco"]
    assert [dataset.label(i) for i in range(2)] == dataset.label_classes == [1, 2]
    assert [dataset.train().label(i) for i in range(2)] == dataset.train().label_classes == [0, 1]


def test_imagenets_variants(tmp_path):
    """A root of WordNet folders scores these classes only; folders named by label stand for all 1,000."""
    for wordnet in (JUNCO, TENCH):
        photo(tmp_path / f"imagenet-a/{wordnet}/x.jpg")
    some = open_dataset(f"imagenet:{tmp_path / 'imagenet-a'}")
    assert some.class_names == ["tench", "junco"] and [some.label(i) for i in range(2)] == [0, 1]
    for label in (13, 2):
        photo(tmp_path / f"v2/{label}/y.jpeg")
    v2 = open_dataset(f"imagenet:{tmp_path / 'v2'}")
    assert len(v2.class_names) == 1000 and sorted(v2.label(i) for i in range(2)) == [2, 13]
    assert len(set(v2.class_names)) == 1000 and v2.prompt_names.count("missile") == 2
    assert v2.class_names[v2.prompt_names.index("missile")].startswith("missile (n")


def test_imagenet_as_kaggle_ships_it(tmp_path, monkeypatch):
    root = tmp_path / "ILSVRC"
    for number in (1, 2):
        photo(root / f"Data/CLS-LOC/val/ILSVRC2012_val_0000000{number}.JPEG")
    rows = [["ImageId", "PredictionString"], ["ILSVRC2012_val_00000001", f"{SHARK} 1 2 3 4 "]]
    rows.append(["ILSVRC2012_val_00000002", f"{JUNCO} 1 2 3 4 {JUNCO} 5 6 7 8"])
    with (tmp_path / "LOC_val_solution.csv").open("w", newline="") as file:  # beside ILSVRC/, not in it
        csv.writer(file).writerows(rows)
    photo(root / f"Data/CLS-LOC/train/{SHARK}/{SHARK}_1.JPEG")
    (root / "Data/CLS-LOC/test").mkdir()
    for where in (tmp_path, root):
        dataset = open_dataset(f"imagenet:{where}")
        assert [dataset.label(i) for i in range(2)] == [2, 13] and len(dataset.class_names) == 1000
        assert [dataset.train().label(i) for i in range(len(dataset.train()))] == [2]
    monkeypatch.chdir(root)
    assert len(open_dataset("imagenet:.")) == 2


@pytest.mark.parametrize(
    ("kind", "file", "folder"),
    [("coco_karpathy", "dataset_coco.json", "val2014"), ("flickr30k", "dataset_flickr30k.json", "flickr30k-images")],
)
def test_karpathys_splits(tmp_path, kind, file, folder):
    listed = []
    for at, split in enumerate(("test", "restval", "train", "val", "test")):
        photo(tmp_path / folder / f"{at}.jpg", at * 20)
        row = {"filename": f"{at}.jpg", "split": split, "sentences": [{"raw": f"text {at} {i}"} for i in range(5)]}
        listed.append(row | ({"filepath": "val2014"} if folder == "val2014" else {}))
    (tmp_path / file).write_text(json.dumps({"images": listed}))
    dataset = open_dataset(f"{kind}:{tmp_path}")
    assert len(dataset) == 2 and len(dataset.train()) == 2 and dataset.caption_field == "caption"
    assert dataset.captions(1) == {"caption": [f"text 4 {i}" for i in range(5)]}
    assert 70 < np.array(dataset.image(1)).mean() < 90
    (tmp_path / folder / "0.jpg").unlink()
    with pytest.raises(UserError, match=rf"0\.jpg of {file} is missing in .*{folder}"):
        open_dataset(f"{kind}:{tmp_path}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"dataset_coco\.json, image 2 \(b\.jpg\): split = null; it must be a text"),
        ({"split": "test"}, r"image 2 \(b\.jpg\): sentences = null; it must be a list \[{\"raw\""),
        ({"split": "test", "sentences": ["A dog."]}, r'sentences = \["A dog\."\]; it must be a list'),
        ({"split": "test", "sentences": [{"raw": 3}]}, r'sentences = \[{"raw": 3}\]; it must be a list'),
    ],
)
def test_rows_that_karpathy_would_not_write(tmp_path, row, message):
    photo(tmp_path / "a.jpg")
    good = {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "A dog."}]}
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [good, {"filename": "b.jpg", **row}]}))
    with pytest.raises(UserError, match=message):
        open_dataset(f"coco_karpathy:{tmp_path}")


def test_docci(tmp_path):
    lines = []
    for at, split in enumerate(("train", "test", "qual_dev")):
        photo(tmp_path / f"images/{split}_0000{at}.jpg")
        row = {"example_id": f"{split}_0000{at}", "split": split, "image_file": f"{split}_0000{at}.jpg"}
        lines.append(json.dumps(row | {"description": f"a long\u2028text {at}"}, ensure_ascii=False))
    (tmp_path / "docci_descriptions.jsonlines").write_text("\n".join(lines) + "\n", encoding="utf-8")
    dataset = open_dataset(f"docci:{tmp_path}")
    assert len(dataset) == 1 and dataset.captions(0) == {"description": ["a long\u2028text 1"]}
    assert len(open_dataset(f"docci:{tmp_path}?split=qual_dev")) == 1
    with pytest.raises(UserError, match=r"Unknown split of .* 'tets'\. Did you mean 'test'"):
        open_dataset(f"docci:{tmp_path}?split=tets")
    (tmp_path / "docci_descriptions.jsonlines").write_text('{"split": "test"}\n')
    with pytest.raises(UserError, match=r"line 1: 'image_file'\. Each line is an object with"):
        open_dataset(f"docci:{tmp_path}")


def test_uned(tmp_path):
    def info(domain, split, pairs):
        file = tmp_path / f"data/info_files/{domain}/{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([{"path": f"{domain}/{name}.jpg", "class_id": label} for name, label in pairs]))
        for name, _ in pairs:
            photo(tmp_path / f"data/images/{domain}/{name}.jpg")

    info("cars", "test", [("a", 7), ("b", 7)])
    info("met", "test", [("q", [5, 6])])
    info("met", "index", [("i", 6), ("j", 9)])
    dataset = open_dataset(f"uned:{tmp_path}")
    assert dataset.class_names == ["cars/7", "met/5", "met/6", "met/9"]
    assert [dataset.label(i) for i in range(3)] == [0, 0, 1]
    assert [dataset.item(i).domain for i in range(3)] == ["cars", "cars", "met"]
    assert [dataset.load(i).also for i in range(3)] == [(), (), (2,)]
    index = dataset.train()
    assert [index.label(i) for i in range(2)] == [2, 3] and index.item(1).domain == "met"
    assert dataset.image(2).size == (8, 6)
    info("met", "test", [("q", [])])
    with pytest.raises(UserError, match=r"test\.json: a class_id is an empty list\. It must be"):
        open_dataset(f"uned:{tmp_path}")


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_a_wrong_root_is_told_what_was_expected_and_found(tmp_path, kind):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError) as error:
        open_dataset(f"{kind}:{tmp_path}")
    message = str(error.value)
    assert f"{tmp_path} is no {kind} dataset. Expected there: {BENCHMARKS[kind].expected}" in message
    assert message.endswith("Found: pictures/, notes.txt.")
    with pytest.raises(UserError, match="Found: no such folder"):
        open_dataset(f"{kind}:{tmp_path / 'none'}")
