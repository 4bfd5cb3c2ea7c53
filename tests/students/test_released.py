"""Students and texts that start from released weights: official files, and what cannot be copied."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import students
from distill.config.load import load_config
from distill.errors import UserError
from distill.models.arch import Arch
from distill.models.sources import load
from distill.models.tokenizers import build_tokenizer
from distill.models.tokenizers.sentence_piece import SentencePieceTokenizer
from distill.preflight.report import preflight
from students import architectures

FILES = Path(__file__).parents[1] / "models" / "sources"


def helper(name: str):
    spec = importlib.util.spec_from_file_location(f"helper_{name}", FILES / f"{name}.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


official = helper("official_files")


@pytest.fixture
def released(tmp_path, monkeypatch, tokenizer_bytes):
    """(source of official files of a small variant, config of a student of its shape)."""
    vocabulary = SentencePieceTokenizer(tokenizer_bytes).vocabulary
    shape = official.Shape(width=128, depth=2, heads=2, mlp=512, grid=16, text_mlp=512, vocabulary=vocabulary)
    np.savez(tmp_path / "v.npz", **official.torch_vision(shape))
    np.savez(tmp_path / "t.npz", **official.torch_text(shape))
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_bytes)
    arch = Arch("tiny", 14, 128, 2, 2, 512, "gelu", 2, 512)
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", arch)
    source = f"tips:{tmp_path}/v.npz+{tmp_path}/t.npz+{tmp_path}/tokenizer.model"
    keys = {
        "students.0.arch": "tiny/14", "students.0.init": source, "text.init": source, "views.global_size": 56,
        "views.local_size": 28, "vision.position_grid": 16, "vision.gelu": "erf",
        "text.tokenizer": f"{tmp_path}/tokenizer.model",
    }  # fmt: skip
    return source, keys


@pytest.fixture(scope="module")
def tokenizer_bytes() -> bytes:
    return helper("conftest").train_tokenizer()


def start(keys: dict):
    cfg = load_config("pretrain/tipsv2_b14", keys).config
    model = students.build_model(cfg.students[0], cfg, build_tokenizer(cfg.text, []))
    students.initialise(model, cfg.students[0], cfg)
    return model.eval()


def test_both_towers_start_as_the_released_ones(released):
    source, keys = released
    model, teacher = start(keys), load(source)
    images = torch.rand(2, 3, 56, 56)
    for own, theirs in zip(model.encode_dense(images), teacher.encode_dense(images)):
        assert torch.equal(own, theirs)
    assert torch.equal(model.encode_text(["a red disc"]), teacher.encode_text(["a red disc"]))
    assert model.text.config()["norm_eps"] == 1e-5  # saved with the model: the weights mean the same when it is loaded


def test_what_cannot_be_copied_is_refused_and_told_before(released, tmp_path):
    source, keys = released
    for changes, message in (
        ({"vision.gelu": "tanh"}, "trained with vision.gelu=erf, not tanh: set it"),
        ({"vision.position_grid": 32}, "embed.positions is 32x32x128 here, 16x16x128 there"),
        ({"text.init": source.rpartition("+")[0]}, "comes without its tokenizer: add +TOKENIZER.model"),
        ({"text.init": source.partition("+")[0]}, "has no text tower of ours to copy"),
        ({"text.tokenizer": "clip"}, "another tokenizer"),
        ({"text.layers": 3}, "layers 3 here, 2 there"),
    ):
        with pytest.raises(UserError) as refused:
            start({**keys, **changes})
        assert message in str(refused.value)
        assert preflight(load_config("pretrain/tipsv2_b14", {**keys, **changes})).problems == [str(refused.value)]
    assert preflight(load_config("pretrain/tipsv2_b14", keys)).problems == []
