"""Whole words as tokens: a small vocabulary learned from the captions themselves."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from distill.errors import UserError
from distill.models.tokenizers.base import Encoded, check_not_empty, pack

SPECIALS = 2  # pad 0, unknown 1
UNKNOWN = 1
_TOKEN = re.compile(r"\w+|[^\w\s]")


def split(text: str) -> list[str]:
    """Lower-cased words and single punctuation marks, in order."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


class WordsTokenizer:
    """Id 0 pads, 1 stands for unknown words, and the rest are `words` in the order given."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self._ids = {word: SPECIALS + i for i, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise UserError("The tokenizer's word list has repeated words: every word needs its own id.")

    @classmethod
    def train(cls, captions: Iterable[str], vocabulary: int, needed: bool = True) -> WordsTokenizer:
        """The `vocabulary` - 2 most frequent words, the most frequent first, ties in alphabetical order.

        Raises `UserError` when there is no word, unless none is `needed`: every word is unknown then.
        """
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(split(caption))
        if not counts and needed:
            raise UserError(
                "No words to train the tokenizer on: the captions are missing or empty. Set captions.cls1 and "
                "captions.cls2 to fields that are there, or, for images without, objective.contrastive.weight=0."
            )
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[: vocabulary - SPECIALS])

    @property
    def vocabulary(self) -> int:
        return SPECIALS + len(self.words)

    def encode(self, texts: Sequence[str], context: int) -> Encoded:
        rows = []
        for i, text in enumerate(texts):
            rows.append([self._ids.get(word, UNKNOWN) for word in split(text)])
            check_not_empty(rows[-1], text, i)
        return pack(rows, context)

    def state(self) -> dict[str, Any]:
        return {"kind": "words", "words": self.words}
