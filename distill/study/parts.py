"""Pieces of a study recipe that are read alike wherever they stand; errors name the file and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from distill.errors import UserError, unknown

NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


def known(path: str, kind: str, given: Iterable[str], allowed: tuple[str, ...]) -> None:
    """Refuse a key that is not in `allowed`."""
    for key in given:
        if key not in allowed:
            raise unknown(f"{kind} in {path}", str(key), allowed)


def checked_name(path: str, kind: str, value: Any) -> str:
    """The name of a study, a variant or a scale."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise UserError(f"{path}: {kind} '{value}' names a folder; use lower-case letters, digits and underscores.")
    return value


def mapping(path: str, key: str, value: Any) -> dict[str, Any]:
    """A mapping of settings with dotted keys; nested ones are joined."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {key} is {value!r}; it must be a mapping of dotted keys, e.g. {{mask.ratio: 0.5}}.")
    flat: dict[str, Any] = {}
    for name, item in value.items():
        nested = isinstance(item, dict) and item
        flat.update({f"{name}.{k}": v for k, v in mapping(path, key, item).items()} if nested else {str(name): item})
    return flat


def words(path: str, key: str, value: Any) -> tuple[str, ...]:
    """A list of words; a single one may stand without brackets."""
    given = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
        raise UserError(f"{path}: {key} is {value!r}; it must be a word or a list of words.")
    return tuple(given)
