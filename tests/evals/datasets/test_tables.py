import json

import numpy as np
import pytest
from PIL import Image

from distill.errors import UserError
from distill.evals.datasets import open_dataset


@pytest.fixture
def photos(tmp_path):
    for at in range(3):
        Image.fromarray(np.full((6, 8, 3), at * 40, np.uint8)).save(tmp_path / f"{at}.png")
    return tmp_path


def test_csv_joins_the_rows_of_an_image(photos):
    rows = ["image,caption,split", "0.png,a cat,test", "1.png,a dog,train", "0.png,one cat,test", "2.png,a tree,test"]
    (photos / "list.csv").write_text("\n".join(rows) + "\n")
    dataset = open_dataset(f"csv:{photos}/list.csv?split=test")
    assert dataset.name == "csv:list.csv test" and len(dataset) == 2 and dataset.has == {"captions"}
    assert dataset.captions(0) == {"caption": ["a cat", "one cat"]}
    assert np.array(dataset.image(1))[0, 0, 0] == 80
    assert len(open_dataset(f"csv:{photos}/list.csv")) == 3


def test_jsonl_with_columns_of_ones_own(photos):
    rows = [{"picture": f"{at}.png", "words": [f"text {at}", f"again {at}"], "title": "x"} for at in range(3)]
    (photos / "lists").mkdir()
    (photos / "lists/all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = f"jsonl:{photos}/lists/all.jsonl?image=picture&field=words&images={photos}"
    dataset = open_dataset(spec, samples=2)
    assert dataset.caption_field == "words" and dataset.captions(1) == {"words": ["text 1", "again 1"]}


@pytest.mark.parametrize(
    ("line", "spec", "message"),
    [
        ("{", "", "1 unreadable lines. The first: .*line 2: bad JSON"),
        ('{"image": "9.png", "caption": "x"}', "", r"The image .*9\.png is missing\. Found in .*: 0\.png"),
        ('{"image": "1.png", "caption": "x"}', "?split=test", "no record of split 'test'"),
        ('{"image": "1.png", "caption": "x"}', "?field=words", "no caption field words"),
        ('{"image": "1.png", "caption": "x"}', "?image=picture", "no column 'picture'"),
        ('{"image": "1.png", "caption": "x"}', "?train=x", "Unknown option of the dataset 'jsonl' 'train'"),
    ],
)
def test_what_cannot_be_read_is_named(photos, line, spec, message):
    (photos / "list.jsonl").write_text('{"image": "0.png", "caption": "a cat"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        open_dataset(f"jsonl:{photos}/list.jsonl{spec}")
