"""Small generated images, tars and a byte-level tokenizer for the data tests."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from distill.config.schema import Config


class ByteTokenizer:
    """Token i of a text is its i-th byte."""

    vocabulary = 256

    def encode(self, texts, context):
        ids = np.zeros((len(texts), context), np.int64)
        for row, text in enumerate(texts):
            data = text.encode()[:context]
            ids[row, : len(data)] = list(data)
        return ids, ids > 0, sum(len(text.encode()) > context for text in texts)


def image(seed: int = 0, size: tuple[int, int] = (24, 32), format: str = "JPEG", **options) -> bytes:
    """A smooth random picture of (height, width), encoded."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(out, format, **options)
    return out.getvalue()


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def sample_files(key: str, seed: int = 0, **captions) -> list[tuple[str, bytes]]:
    texts = captions or {"web": f"web {key}", "synthetic": [f"one {key}", f"two {key}"], "detailed": f"all {key}"}
    return [(f"{key}.jpg", image(seed)), (f"{key}.json", json.dumps(texts).encode())]


def write_shards(folder: Path, shards: int, per_shard: int, broken: tuple[int, ...] = ()) -> Path:
    """`s-000.tar`, ... with keys 00000, 00001, ...; the images of the samples numbered in `broken` are cut off."""
    for shard in range(shards):
        files: list[tuple[str, bytes]] = []
        for number in range(shard * per_shard, (shard + 1) * per_shard):
            (name, data), text = sample_files(f"{number:05d}", number)
            files += [(name, data[: len(data) // 3] if number in broken else data), text]
        write_tar(folder / f"s-{shard:03d}.tar", files)
    return folder


def config(**data) -> Config:
    """A small recipe: 8 images a step, 32 px global and two 16 px local crops."""
    cfg = Config()
    cfg.views.global_size, cfg.views.local_size, cfg.views.locals = 32, 16, 2
    cfg.train.batch, cfg.train.steps, cfg.train.accelerator = 8, 4, "cpu"
    cfg.text.context = 12
    cfg.data.source, cfg.data.shuffle, cfg.data.workers = "shards", 16, 0
    for name, value in data.items():
        setattr(cfg.data, name, value)
    return cfg


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    return SimpleNamespace(
        image=image,
        tar=write_tar,
        files=sample_files,
        shards=write_shards,
        config=config,
        tokenizer=ByteTokenizer(),
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """Keeps indexes out of the user's cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
