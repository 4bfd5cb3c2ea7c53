"""A SentencePiece model trained on a few sentences."""

from __future__ import annotations

import io

import pytest
import sentencepiece

SENTENCES = [f"a {colour} {thing} on a {ground}" for colour in ("red", "blue", "green") for thing in ("disc", "square")
             for ground in ("wall", "field")]  # fmt: skip


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=buffer,
        vocab_size=40,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return buffer.getvalue()
