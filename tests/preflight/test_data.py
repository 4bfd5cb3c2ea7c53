"""What check says about data."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from distill.config.load import load_config
from distill.preflight.data import look_at_data


def tar(path: Path, record: dict | None, image: bytes | None = None) -> None:
    if image is None:
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30)).save(buffer, "JPEG")
        image = buffer.getvalue()
    files = {"000.jpg": image}
    if record is not None:
        files["000.json"] = json.dumps(record).encode()
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def many(path: Path, records: list[object]) -> None:
    """A tar of as many samples; records are made JSON, bytes stay as they are."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG")
    with tarfile.open(path, "w") as archive:
        for number, record in enumerate(records):
            text = record if isinstance(record, bytes) else json.dumps(record).encode()
            for suffix, content in (("jpg", buffer.getvalue()), ("json", text)):
                info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def look(shards: str, **changes):
    return look_at_data(
        load_config("pretrain/scenes_tiny", {"data.source": "shards", "data.shards": shards, **changes}).config
    )


def test_scenes_need_nothing():
    changes = {"data.scenes.count": 8192, "train.batch": 16, "train.steps": 6000}
    report = look_at_data(load_config("pretrain/scenes_tiny", changes).config)
    assert report.problems == []
    assert "96,000 images = 11.7 epochs" in " ".join(report.lines)


def test_good_shards(tmp_path):
    for number in range(3):
        tar(tmp_path / f"a-{number}.tar", {"web": "one", "synthetic": ["two", "three"], "detailed": "four"})
    report = look(f"{tmp_path}/a-{{0..2}}.tar", **{"data.epoch": 96, "train.batch": 16, "train.steps": 6000})
    assert report.problems == []
    text = "\n".join(report.lines)
    assert "3 shards, read by index" in text
    assert "JPEG 40 x 30, caption fields web (1), synthetic (2), detailed (1)" in text
    assert "= 1000.0 epochs" in text


@pytest.mark.parametrize(
    ("record", "image", "expected"),
    [
        ({"wep": "one", "synthetic": "x", "detailed": "y"}, None, "captions.cls1: "),
        ({"wep": "one", "synthetic": "x", "detailed": "y"}, None, "no field 'web'. Did you mean 'wep'?"),
        (None, None, "It has no captions; list fields that are there, or set captions.fallback"),
        ({"web": "x"}, b"not an image", "cannot be read"),
    ],
)
def test_a_first_sample_that_does_not_do(tmp_path, record, image, expected):
    tar(tmp_path / "a.tar", record, image)
    assert any(expected in line for line in look(f"{tmp_path}/a.tar").problems)


def test_missing_and_damaged_shards(tmp_path):
    assert "No shard matches" in look(f"{tmp_path}/*.tar").problems[0]
    (tmp_path / "a.tar").write_bytes(b"rubbish" * 99)
    problem = look(f"{tmp_path}/a.tar").problems[0]
    assert problem.startswith("data.shards: no sample can be read: 1 shards hold no image. First problem: ")
    tar(tmp_path / "b.tar", {"web": "one", "synthetic": "two", "detailed": "four"})
    report = look(f"{tmp_path}/?.tar")
    assert report.problems == []  # as a run goes on without it
    text = "\n".join(report.lines)
    assert "left out: " in text
    assert "not a plain tar" in text
    assert "first sample 000: JPEG" in text


def test_a_first_sample_whose_name_is_not_utf_8_can_be_printed(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30)).save(buffer, "JPEG")
        for name, content in (("Käse.jpg", buffer.getvalue()), ("Käse.json", json.dumps(ALL).encode())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert "first sample K?se: JPEG" in "\n".join(look(f"{tmp_path}/x.tar").lines).encode().decode()


ALL = {"web": "one", "synthetic": "two", "detailed": "four"}
LACKS = {"web": "one", "synthetic": "two", "detailed": " "}
BOTH = {"captions.cls2": ["synthetic", "detailed"]}


def test_fields_that_some_samples_lack(tmp_path):
    """Eight of twelve shards are looked into, spread over all, and 256 records in all."""
    for number in range(12):
        many(tmp_path / f"{number:02d}.tar", [ALL] * 31 + [LACKS if number == 9 else ALL] + [LACKS] * 9)
    few = look(f"{tmp_path}/*.tar", **BOTH)
    assert few.problems == []
    assert not list(tmp_path.glob("*.json"))  # nothing is left beside the shards
    wanted = "captions.cls2: 1 of 256 samples looked at have no field 'detailed' (first 031 in "
    assert [line.startswith(wanted) and line.endswith("they are skipped") for line in few.lines if "cls2" in line] == [
        True
    ]
    (problem,) = look(f"{tmp_path}/*.tar", **BOTH, **{"data.max_error_rate": 0.001}).problems  # half the draws of CLS-2
    assert "about 0.2% of samples would be skipped, data.max_error_rate is 0.1%. captions.cls2: 1 of 256" in problem
    filled = look(f"{tmp_path}/*.tar", **BOTH, **{"captions.fallback": "detailed"})
    assert filled.lines == few.lines  # an empty text is none


def test_check_says_of_a_few_samples_what_the_run_makes_of_them(tmp_path):
    many(tmp_path / "a.tar", [ALL, {"web": "one", "synthetic": "two"}, b"{", *[ALL] * 20])
    lines = look(f"{tmp_path}/a.tar", **{"data.max_error_rate": 0.1}).lines
    assert any(line.startswith("1 of 23 samples looked at cannot be read, first ") for line in lines)
    problems = look(f"{tmp_path}/a.tar", **BOTH).problems
    assert "1 of 23 samples looked at cannot be read" in problems[0]
    assert "captions: about 2.3% of samples would be skipped" in problems[1]


def test_names_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "a:b.tar", ALL)
    assert look("a:b.tar").problems == []


def test_a_fallback_or_no_contrast_needs_no_fields(tmp_path):
    tar(tmp_path / "a.tar", {"alt": "one"})
    filled = look(
        f"{tmp_path}/a.tar", **{"captions.fallback": "alt", "captions.cls1": ["atl"], "captions.cls2": ["alt"]}
    )
    assert filled.problems == []
    said = [line for line in filled.lines if line.startswith("captions.")]
    assert said == [
        "captions.cls1: no sample looked at has a field 'atl', captions.fallback=alt stands for it. Did you mean 'alt'?"
    ]
    assert look(f"{tmp_path}/a.tar", **{"objective.contrastive.weight": 0}).problems == []


def test_streams_are_counted_but_not_opened():
    changes = {"data.epoch": 100, "data.workers": 2, "train.devices": 2}
    report = look("pipe:exit 1 {0..2}", **changes)
    assert "3 streamed shards for 4 loader processes" in report.problems[0]
    assert "pipes and urls are not opened here" in report.lines
    assert look("pipe:exit 1 {0..3}", **changes).problems == []
