"""A `tokenizer.json` of Hugging Face, with the `tokenizers` package (extra `hf`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.errors import UserError
from distill.models.tokenizers.base import Encoded, check_not_empty, pack


class HfTokenizer:
    """The file's own pieces, in its own case, without special tokens; padded with 0. Its text travels in `state()`."""

    def __init__(self, content: str, source: str = "the given text"):
        try:
            import tokenizers
        except ImportError as error:
            raise UserError(
                f"{source} needs the package tokenizers: pip install 'everypatch[hf]', or put the model's "
                f"tokenizer.model beside it."
            ) from error
        self._content = content
        try:
            self._pieces = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the package raises plain Exception
            raise UserError(f"Not a tokenizer.json: {source}. Give the file that belongs to the model.") from error
        self._pieces.no_padding()
        self._pieces.no_truncation()

    @property
    def vocabulary(self) -> int:
        return self._pieces.get_vocab_size()

    def encode(self, texts: Sequence[str], context: int) -> Encoded:
        rows = []
        for i, text in enumerate(texts):
            rows.append(self._pieces.encode(text, add_special_tokens=False).ids)
            check_not_empty(rows[-1], text, i)
        return pack(rows, context)

    def state(self) -> dict[str, Any]:
        return {"kind": "hf", "content": self._content}
