import json

import pytest
from open_clip import IMAGENET_CLASSNAMES

from distill.evals.class_names import FOLDER, class_list

COUNTS = {
    "ade20k": 150,
    "cityscapes": 19,
    "coco_object": 81,
    "coco_stuff": 171,
    "imagenet": 1000,
    "pascal_context59": 59,
    "voc20": 20,
}


def test_every_list_is_known():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_lists_are_whole_and_say_where_they_come_from(name):
    names = class_list(name)
    assert len(names) == COUNTS[name]
    assert all(text and text == text.strip() for text in names)
    assert len(names) - len(set(names)) == (2 if name == "imagenet" else 0)  # two of CLIP's names stand twice
    assert "repository" in json.loads((FOLDER / f"{name}.json").read_text())["source"]


def test_names_at_their_labels():
    """Labels that the datasets' own documentation gives."""
    assert [class_list("ade20k")[i] for i in (0, 2, 12, 149)] == ["wall", "sky", "person", "flag"]
    assert [class_list("cityscapes")[i] for i in (0, 10, 18)] == ["road", "sky", "bicycle"]
    assert [class_list("coco_object")[i] for i in (0, 1, 80)] == ["background", "person", "toothbrush"]
    assert [class_list("coco_stuff")[i] for i in (0, 79, 80, 170)] == ["person", "toothbrush", "banner", "wood"]
    assert [class_list("voc20")[i] for i in (0, 14, 19)] == ["aeroplane", "person", "tvmonitor"]
    context = class_list("pascal_context59")
    assert [context[i] for i in (0, 1, 36, 58)] == ["aeroplane", "bag", "person", "wood"]
    assert list(context) == sorted(context)  # the 459 classes that they are taken from stand in the alphabet's order
    assert class_list("coco_object")[1:] == class_list("coco_stuff")[:80]
    assert list(class_list("imagenet")) == list(IMAGENET_CLASSNAMES)
