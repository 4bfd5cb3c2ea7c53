"""Runs on images that have no captions."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distill
from distill.config.load import load_config
from distill.errors import UserError
from distill.preflight.report import preflight

NO_CONTRAST = {"objective.contrastive.weight": 0}


@pytest.fixture
def images(tmp_path: Path) -> dict[str, object]:
    """Settings for a shard of sixteen images and nothing else, as `tar cf` makes it of a folder."""
    return shard(tmp_path)


def shard(folder: Path, caption: str | None = None) -> dict[str, object]:
    """Settings for a shard of sixteen images, with `caption` under that name if there is one."""
    with tarfile.open(folder / "images.tar", "w") as tar:
        for n in range(16):
            out = io.BytesIO()
            pixels = np.random.default_rng(n).integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(out, "JPEG")
            files = {f"photos/{n}.jpg": out.getvalue()}
            files |= {f"photos/{n}.json": json.dumps({"caption": caption}).encode()} if caption else {}
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {"data.source": "shards", "data.shards": str(folder / "images.tar"), "data.shuffle": 16}


def test_words_of_the_fallback_are_known(tmp_path: Path, small_run):
    folder = small_run(**shard(tmp_path, "a zebra at noon"), **{"captions.fallback": "caption"}).folder
    model = distill.load(f"run:{folder}")
    one, other = model.tokenizer.encode(["a zebra at noon", "a mule at noon"], 8)[0]
    assert (one != other).any()


def test_images_without_captions_train(images, small_run, column):
    folder = small_run(**images, **NO_CONTRAST).folder
    assert np.isfinite(column(folder, "loss")).all()


def test_with_contrast_they_are_refused(images, small_run):
    with pytest.raises(UserError, match="No words to train the tokenizer on"):
        small_run(**images)
    with pytest.raises(UserError, match=r"samples in a row could not be used. First: .*no captions"):
        small_run(**images, **{"text.tokenizer": "clip"})


def test_a_second_stage_cannot_begin_to_contrast_words_that_nobody_knows(images, small, small_run):
    first = small_run("first", **images, **NO_CONTRAST).folder
    second = {"train.stage_from": str(first), "data.source": "scenes"}
    with pytest.raises(
        UserError, match=r"was trained without captions: .* Set objective.contrastive.weight=0, or"
    ) as refused:
        small_run("second", **second)
    assert preflight(load_config("pretrain/scenes_tiny", small(**second))).problems == [str(refused.value)]
    small_run("third", **second, **NO_CONTRAST)
