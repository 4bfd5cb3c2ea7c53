"""CLIP's byte-pair encoding, from open_clip's installed package; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.models.tokenizers.base import Encoded, check_not_empty, pack


class ClipTokenizer:
    """Lower-cased BPE with a start and an end token; a text that is cut still closes with the end token."""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer  # heavy to import, and only this kind needs it

        self._bpe = SimpleTokenizer()

    @property
    def vocabulary(self) -> int:
        return self._bpe.vocab_size

    def encode(self, texts: Sequence[str], context: int) -> Encoded:
        start, end = self._bpe.sot_token_id, self._bpe.eot_token_id
        rows = []
        for i, text in enumerate(texts):
            row = self._bpe.encode(text)
            check_not_empty(row, text, i)
            rows.append([start, *row, end])
        return pack(rows, context, end=end)

    def state(self) -> dict[str, Any]:
        return {"kind": "clip"}
