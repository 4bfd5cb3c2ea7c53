"""The tokenizer that belongs to a model of open_clip: CLIP's own is installed, others are fetched from their hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.models.tokenizers.base import PAD, Encoded


class OpenClipTokenizer:
    """What `open_clip.get_tokenizer(name)` gives; the text tower of that model knows where a text ends."""

    def __init__(self, name: str):
        import open_clip  # heavy, and only this kind needs it

        self.name = name
        self._encode = open_clip.get_tokenizer(name)

    @property
    def vocabulary(self) -> int:
        inner = getattr(self._encode, "tokenizer", self._encode)
        return len(inner) if hasattr(inner, "__len__") else inner.vocab_size

    def encode(self, texts: Sequence[str], context: int) -> Encoded:
        """`cut` is not counted: the model's tokenizer does not say which texts it shortened."""
        ids = self._encode(list(texts), context_length=context).numpy().astype("int64")  # [B, L]
        return Encoded(ids, ids != PAD, 0)

    def state(self) -> dict[str, Any]:
        return {"kind": "open_clip", "name": self.name}
