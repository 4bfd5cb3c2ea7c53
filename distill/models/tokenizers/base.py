"""What a tokenizer offers, and the packing that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from distill.errors import UserError

PAD = 0


class Encoded(NamedTuple):
    """A batch of token sequences, padded at the end."""

    ids: np.ndarray  # int64 [B, L]
    valid: np.ndarray  # bool [B, L], True at real tokens
    cut: int  # how many texts were longer than L tokens and lost their end


@runtime_checkable
class Tokenizer(Protocol):
    """Turns texts into token ids. Deterministic, picklable, and rebuilt from `state()` without any other file."""

    @property
    def vocabulary(self) -> int:
        """Number of ids: every id is in [0, vocabulary)."""
        ...

    def encode(self, texts: Sequence[str], context: int) -> Encoded:
        """`texts` as ids of exactly `context` columns. Raises `UserError` for a text without any token."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able; `load_tokenizer` makes an equal tokenizer of it."""
        ...


def pack(rows: Sequence[Sequence[int]], context: int, end: int | None = None) -> Encoded:
    """Pads with 0 or cuts every row to `context` ids; `end`, if given, replaces the last id of a row that was cut."""
    ids = np.full((len(rows), context), PAD, dtype=np.int64)
    valid = np.zeros((len(rows), context), dtype=bool)
    cut = 0
    for i, row in enumerate(rows):
        length = min(len(row), context)
        ids[i, :length] = row[:length]
        valid[i, :length] = True
        if len(row) > context:
            cut += 1
            if end is not None:
                ids[i, -1] = end
    return Encoded(ids, valid, cut)


def check_not_empty(row: Sequence[int], text: str, position: int) -> None:
    """Raises `UserError` when `text`, at `position` of its batch, gave no tokens."""
    if not row:
        raise UserError(f"Text {position} is empty ({text!r}): a caption needs at least one word.")


def check_list(texts: Sequence[str]) -> None:
    """Raises `UserError` for one text alone, which would be read letter by letter, and for what is no text."""
    if isinstance(texts, str):
        raise UserError(f"Texts come as a list, but {texts!r} is one text: write [{texts!r}].")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"Text {position} is {text!r}, of type {type(text).__name__}: give strings.")
