import json

import pytest

from distill.data.records import FORMATS, Reading, detect_format, read_records
from distill.errors import UserError

COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 7, "caption": "one"},
        {"image_id": 8, "caption": "x"},
        {"image_id": 7, "caption": "two"},
    ],
}


def write(tmp_path, text, name="c.txt"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def read(tmp_path, text, format=None, **reading):
    records, bad = read_records(write(tmp_path, text), format, Reading(**reading))
    return {record.image: record.captions for record in records}, bad


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ('{"image": "a.jpg", "caption": "x"}\n{"image": "b.jpg"}\n', "jsonl"),
        ('\ufeff{"image": "a.jpg"}', "jsonl"),
        (json.dumps(COCO), "coco"),
        (json.dumps(COCO, indent=1), "coco"),
        ("a.jpg#0\tA dog .\na.jpg#1\tA cat .\n", "flickr"),
        ("image,caption\na.jpg,x\n", "csv"),
        ("image_name| comment_number| comment\n", "csv"),
        ("image\tcaption\n", "csv"),
    ],
)
def test_format_is_recognised_by_content(tmp_path, text, format):
    assert detect_format(write(tmp_path, text)) == format


@pytest.mark.parametrize("text", ["", "[1, 2]", "just words\n"])
def test_unknown_format_names_the_allowed_ones(tmp_path, text):
    with pytest.raises(UserError, match=f"Allowed: {', '.join(sorted(FORMATS))}"):
        detect_format(write(tmp_path, text))


def test_csv_with_quotes_and_unicode(tmp_path):
    found, bad = read(tmp_path, 'file_name,id,alt,caption\n"ä b.jpg",1,"x, y",猫\n')
    assert found == {"ä b.jpg": {"alt": ["x, y"], "caption": ["猫"]}}  # `id` is no caption
    assert bad == []


def lines(bad):
    """Line number and kind of what was left out."""
    return [(error.key, error.reason.partition(" (")[0]) for error in bad]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("image,caption\na.jpg,A dog, running fast\nb.jpg,x\n", "line 2"),
        ("image| n| comment\nb.jpg| 0| x\na.jpg| 0| A dog | cat .\n", "line 3"),
        ("image\tcaption\n\nb.jpg\tx\na.jpg\tA dog\tcat", "line 4"),
    ],
)
def test_a_row_with_more_cells_than_columns_is_not_cut(tmp_path, text, line):
    found, bad = read(tmp_path, text)
    assert list(found) == ["b.jpg"]
    assert lines(bad) == [(line, "more cells than columns")]


def test_empty_cells_at_the_end_of_a_row_are_no_loss(tmp_path):
    found, bad = read(tmp_path, "image,caption\na.jpg,x,,\nb.jpg,\nc.jpg\n")
    assert found == {"a.jpg": {"caption": ["x"]}, "b.jpg": {"caption": [""]}, "c.jpg": {}}
    assert bad == []


@pytest.mark.parametrize("later", ["", 'd.jpg\ta 5"\n', 'd.jpg\tsaid "hi" twice\n', 'd.jpg\t"No"\n', 'd.jpg\t"No\n'])
def test_a_quote_that_is_not_closed_takes_no_other_row(tmp_path, later):
    text = 'image\tcaption\na.jpg\t"A dog\nb.jpg\ta cat\n' + later
    found, bad = read(tmp_path, text)
    assert found["a.jpg"] == {"caption": ['"A dog']}  # files with tabs often have no quoting at all
    assert found["b.jpg"] == {"caption": ["a cat"]}
    assert ("d.jpg" in found, bad) == (bool(later), [])
    found, bad = read(tmp_path, text.replace("\t", ","))
    assert found["b.jpg"] == {"caption": ["a cat"]}
    assert ("d.jpg" in found) == bool(later)
    assert lines(bad) == [("line 2", "a quote that is not closed")]


@pytest.mark.parametrize("mark", [",", "\t", "|"])
def test_quoted_texts_may_have_several_lines(tmp_path, mark):
    long = 'A "dog", running\nfast, in the park\n\nof x.jpg'
    quoted = long.replace('"', '""')
    text = f'image{mark}caption{mark}n\na.jpg{mark}"{quoted}"{mark}1\nb.jpg{mark}x{mark}2\n'
    found, bad = read(tmp_path, text)
    assert found["a.jpg"] == {"caption": [long]}
    assert found["b.jpg"] == {"caption": ["x"]}
    assert bad == []


def test_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"several columns are named caption\. Give every column a name of its own"):
        read(tmp_path, "image,caption,,caption,\na.jpg,x,,y,\n")


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_utf_8_is_refused_by_line(tmp_path, format):
    path = tmp_path / "c.csv"
    path.write_bytes("image,caption\na.jpg,x\nb.jpg,café\n".encode("latin1"))
    with pytest.raises(UserError, match=r"line 3 is not UTF-8: b'b.jpg,caf\\xe9'. Convert .* iconv -f LATIN1 -t UTF-8"):
        read_records(path, format, Reading())
    path.write_bytes("image\tcaption\na.jpg\tx\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"line 1 is not UTF-8: .*iconv -f UTF-16"):
        read_records(path, None, Reading())


def test_csv_rows_of_one_image_are_joined(tmp_path):
    found, _ = read(tmp_path, "image_name| comment_number| comment\na.jpg| 0| one\na.jpg| 1| two\nb.jpg| 0| x\n")
    assert found == {"a.jpg": {"comment": ["one", "two"]}, "b.jpg": {"comment": ["x"]}}


def test_jsonl_caption_shapes(tmp_path):
    rows = [
        {"image": "a.jpg", "caption": "x", "credit": "me"},
        {"image": "b.jpg", "captions": ["p", "q"]},
        {"image": "c.jpg", "captions": {"web": "w", "long": ["l1", "l2"], "n": 3}},
        {"image": "d.jpg", "captions": [{"kind": "alt", "text": "t1"}, {"kind": "alt", "text": "t2"}, {"text": "t3"}]},
    ]
    found, _ = read(tmp_path, "\n".join(map(json.dumps, rows)))
    assert found == {
        "a.jpg": {"caption": ["x"]},
        "b.jpg": {"captions": ["p", "q"]},
        "c.jpg": {"web": ["w"], "long": ["l1", "l2"]},
        "d.jpg": {"alt": ["t1", "t2"], "captions": ["t3"]},
    }


def test_texts_inside_other_fields_are_no_captions_unless_named(tmp_path):
    meta = {"license": "cc", "title": "a title", "caption": "not this"}
    row = {
        "image": "a.jpg",
        "caption": "x",
        "meta": meta,
        "objects": [{"kind": "sign", "text": "STOP"}],
        "Texts": {"q": "y"},
    }
    assert read(tmp_path, json.dumps(row))[0] == {"a.jpg": {"caption": ["x"], "q": ["y"]}}
    names = {"web": "title", "sign": "sign", "caption": "caption"}
    found, _ = read(tmp_path, json.dumps(row), caption_fields=names)
    assert found == {"a.jpg": {"web": ["a title"], "sign": ["STOP"], "caption": ["x"]}}
    with pytest.raises(
        UserError, match=r"no caption field that is recognised. Found: image, meta, license, title, caption"
    ):
        read(tmp_path, json.dumps({"image": "a.jpg", "meta": meta}))


def test_fields_are_chosen_and_renamed(tmp_path):
    text = json.dumps({"pic": "a.jpg", "credit": "me", "captions": [{"kind": "alt", "text": "t"}]})
    found, _ = read(tmp_path, text, image_field="pic", caption_fields={"web": "alt", "credit": "credit"})
    assert found == {"a.jpg": {"web": ["t"], "credit": ["me"]}}


def test_split(tmp_path):
    text = "image,caption,split\na,x,train\nb,y,val\n"
    assert read(tmp_path, text, split="val")[0] == {"b": {"caption": ["y"]}}
    with pytest.raises(UserError, match=r"no record of split 'test'\. Found: train, val"):
        read(tmp_path, text, split="test")
    with pytest.raises(UserError, match="a coco file has no splits"):
        read(tmp_path, json.dumps(COCO), split="val")


def test_coco(tmp_path):
    found, _ = read(tmp_path, json.dumps(COCO))
    assert found == {"a.jpg": {"caption": ["one", "two"]}, "b.jpg": {"caption": ["x"]}}
    broken = {**COCO, "annotations": [*COCO["annotations"], {"image_id": 9, "caption": "?"}]}
    assert read(tmp_path, json.dumps(broken))[1][0].key == "image 9"
    with pytest.raises(UserError, match="no COCO captions file"):
        read(tmp_path, '{"images": []', "coco")


def test_flickr(tmp_path):
    found, bad = read(tmp_path, "a#b.jpg#0\tA dog .\nnonsense\na#b.jpg#1\tA cat .\n", "flickr")
    assert found == {"a#b.jpg": {"caption": ["A dog .", "A cat ."]}}
    assert [(error.key, error.reason) for error in bad] == [("line 2", "not 'NAME#NUMBER<tab>CAPTION'")]


def test_bad_lines_are_listed(tmp_path):
    found, bad = read(tmp_path, '{"image": "a.jpg", "caption": "x"}\n{"image": \n[1]\n')
    assert list(found) == ["a.jpg"]
    assert [error.key for error in bad] == ["line 2", "line 3"]


def test_what_is_missing_is_named_with_what_there_is(tmp_path):
    with pytest.raises(
        UserError, match=r"no column that names the image. Found: x, caption. Name it with --image-field"
    ):
        read(tmp_path, "x,caption\n1,2\n")
    with pytest.raises(UserError, match=r"no column 'pic'\. Found: image, caption"):
        read(tmp_path, "image,caption\n1,2\n", image_field="pic")
    with pytest.raises(UserError, match=r"no caption field that is recognised. Found: image, words. Name them with"):
        read(tmp_path, "image,words\n1,2\n")
    with pytest.raises(UserError, match=r"no caption field alt\. Found: image, caption"):
        read(tmp_path, "image,caption\n1,2\n", caption_fields={"web": "alt", "c": "caption"})
    with pytest.raises(UserError, match="holds no record"):
        read(tmp_path, "image,caption\n")
    with pytest.raises(UserError, match="Unknown format 'xml'"):
        read(tmp_path, "image,caption\n", "xml")
    with pytest.raises(UserError, match="Cannot read captions file"):
        read_records(tmp_path / "none.csv", None, Reading())


@pytest.mark.parametrize(
    "text",
    [
        "image,caption\na.jpg,x\n,lost\n,lost too\n",
        "caption,image\nx,a.jpg\n   \nlost,\n",
        '{"image": "a.jpg", "caption": "x"}\n{"caption": "lost"}\n{"image": null, "caption": "lost"}\n',
    ],
)
def test_every_record_that_names_no_image_is_a_loss_of_its_own(tmp_path, text):
    found, bad = read(tmp_path, text)
    assert found == {"a.jpg": {"caption": ["x"]}}
    assert [(error.key, error.reason) for error in bad] == [
        ("record 2", "no image named"),
        ("record 3", "no image named"),
    ]
