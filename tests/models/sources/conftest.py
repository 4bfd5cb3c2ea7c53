"""Official files on disk: random weights in the layouts that are published, small enough for tests."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import sentencepiece

WORDS = [f"a {colour} {thing} on a {ground}" for colour in ("red", "blue", "green") for thing in ("disc", "square")
         for ground in ("wall", "field")]  # fmt: skip


@pytest.fixture(scope="session")
def official() -> ModuleType:
    """The module of reference encoders beside this file."""
    name = "official_files"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def tokenizer_bytes() -> bytes:
    return train_tokenizer()


def train_tokenizer() -> bytes:
    """A SentencePiece model as the released one is: pad 0, no begin or end."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_writer=buffer, vocab_size=40, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return buffer.getvalue()


@pytest.fixture
def tokenizer_file(tmp_path, tokenizer_bytes) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer_bytes)
    return path


@pytest.fixture
def save(tmp_path):
    """`save(name, arrays) -> path` of an npz file."""

    def write(name: str, arrays: dict) -> Path:
        np.savez(tmp_path / f"{name}.npz", **arrays)
        return tmp_path / f"{name}.npz"

    return write
