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
    assert "no sample can be read from" in look(f"{tmp_path}/a.tar").problems[0]


def test_a_fallback_or_no_contrast_needs_no_fields(tmp_path):
    tar(tmp_path / "a.tar", {"alt": "one"})
    assert look(f"{tmp_path}/a.tar", **{"captions.fallback": "alt"}).problems == []
    assert look(f"{tmp_path}/a.tar", **{"objective.contrastive.weight": 0}).problems == []


def test_streams_are_counted_but_not_opened():
    changes = {"data.epoch": 100, "data.workers": 2, "train.devices": 2}
    report = look("pipe:exit 1 {0..2}", **changes)
    assert "3 streamed shards for 4 loader processes" in report.problems[0]
    assert "pipes and urls are not opened here" in report.lines
    assert look("pipe:exit 1 {0..3}", **changes).problems == []
