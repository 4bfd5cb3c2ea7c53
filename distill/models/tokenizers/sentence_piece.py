"""A trained SentencePiece model, as the paper's text tower uses it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from distill.errors import UserError
from distill.models.tokenizers.base import Encoded, check_not_empty, pack


class SentencePieceTokenizer:
    """Lower-cased pieces, no begin or end token, padded with 0. The model's bytes travel in `state()`."""

    def __init__(self, model: bytes, source: str = "the given bytes"):
        self._model = model
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(model) and self._pieces.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError, OSError):
            loaded = False
        if not loaded:
            raise UserError(f"Not a SentencePiece model: {source}. Give a .model file made by SentencePiece's trainer.")

    @classmethod
    def from_file(cls, path: str | Path) -> SentencePieceTokenizer:
        """Reads a `.model` file; `UserError` when it is missing or something else."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise UserError(f"No tokenizer file at {path}. Give the path of a SentencePiece .model file.")
        return cls(path.read_bytes(), source=str(path))

    @property
    def vocabulary(self) -> int:
        return self._pieces.GetPieceSize()

    def encode(self, texts: Sequence[str], context: int) -> Encoded:
        rows = []
        for i, text in enumerate(texts):
            rows.append(self._pieces.EncodeAsIds(text.lower()))
            check_not_empty(rows[-1], text, i)
        return pack(rows, context)

    def state(self) -> dict[str, Any]:
        return {"kind": "sentencepiece", "model": base64.b64encode(self._model).decode("ascii")}
