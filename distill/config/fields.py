"""The schema, flattened: one `Leaf` for each key a recipe can set, and the check of one value against it.

Items of a list of sections are written with a star: `students.*.arch`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from distill.config.schema import Config
from distill.errors import did_you_mean

MISSING = "???"  # in a recipe: the user must give this value before a run


@dataclass(frozen=True)
class Leaf:
    """One key: its type, default, bounds and help."""

    key: str
    kind: type  # bool, int, float or str; of the items when `many`
    many: bool
    optional: bool
    default: Any
    help: str
    bounds: dict[str, Any]

    @property
    def type_name(self) -> str:
        """For people: `integer`, `list of text`, `number or null`."""
        name = {bool: "true or false", int: "integer", float: "number", str: "text"}[self.kind]
        return ("list of " if self.many else "") + name + (" or null" if self.optional else "")

    @property
    def allowed(self) -> str:
        """The accepted values for people: `one of masked, visible, all`, `at least 0 and below 1`, or empty."""
        if "choices" in self.bounds:
            return "one of " + ", ".join(self.bounds["choices"])
        words = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
        return " and ".join(f"{word} {self.bounds[name]:g}" for name, word in words.items() if name in self.bounds)


def _unwrap(hint: Any) -> tuple[Any, bool]:
    """`str | None` -> (str, True); anything else -> (hint, False)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return inner[0], len(inner) < len(typing.get_args(hint))
    return hint, False


def _walk(cls: type, prefix: str, leaves: dict[str, Leaf], sections: dict[str, str]) -> None:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        key = prefix + item.name
        hint, optional = _unwrap(hints[item.name])
        many = typing.get_origin(hint) is list
        kind = typing.get_args(hint)[0] if many else hint
        text = item.metadata.get("help", "")
        if dataclasses.is_dataclass(kind):
            sections[key] = text
            _walk(typing.cast(type, kind), f"{key}.*." if many else f"{key}.", leaves, sections)
            continue
        factory = item.default_factory
        default = item.default if factory is dataclasses.MISSING else factory()
        bounds = {name: value for name, value in item.metadata.items() if name != "help"}
        leaves[key] = Leaf(key, kind, many, optional, default, text, bounds)


@lru_cache(maxsize=1)
def schema() -> tuple[dict[str, Leaf], dict[str, str]]:
    """(leaves by key, help of each section by key), in the order of the schema."""
    leaves: dict[str, Leaf] = {}
    sections: dict[str, str] = {}
    _walk(Config, "", leaves, sections)
    return leaves, sections


def list_sections() -> set[str]:
    """Sections that are lists of sections: `{"students"}`."""
    return {key.split(".*.")[0] for key in schema()[0] if ".*." in key}


def leaf_of(key: str) -> Leaf:
    """The leaf of a concrete key: `students.0.arch` gives that of `students.*.arch`."""
    return schema()[0][".".join("*" if part.isdigit() else part for part in key.split("."))]


def suggestion(key: str) -> str:
    """`" Did you mean 'optim.lr'?"` for an unknown key: near whole keys, or keys that end in the same word."""
    leaves, sections = schema()
    plain = {name.replace(".*.", "."): name for name in [*leaves, *sections]}
    last = key.rsplit(".", 1)[-1]
    same_end = [name for name in plain if name.rsplit(".", 1)[-1] == last]
    if same_end:
        near = sorted(same_end, key=lambda name: -difflib.SequenceMatcher(None, name, key).ratio())[:3]
        return f" Did you mean {' or '.join(repr(name) for name in near)}?"
    parent = key.rsplit(".", 1)[0] if "." in key else ""
    siblings = [name for name in plain if "." in name and name.rsplit(".", 1)[0] == parent]
    if siblings:
        keys = ", ".join(name.rsplit(".", 1)[-1] for name in siblings)
        return f"{did_you_mean(key, siblings)} Keys of {parent}: {keys}."
    near = difflib.get_close_matches(key, plain, n=1, cutoff=0.7)
    ends = {name.rsplit(".", 1)[-1]: name for name in plain}
    near = near or [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.75)]
    if near:
        return f" Did you mean '{near[0]}'?"
    tops = dict.fromkeys(name.split(".")[0] for name in plain)
    return f" Top-level keys: {', '.join(tops)}; all of them: docs/config.md."


def check_value(leaf: Leaf, value: Any, raw: str | None = None) -> Any:
    """`value` converted to the leaf's type. `raw`: the text it was parsed from. Raises `ValueError` with a sentence."""
    if value is None:
        if leaf.optional:
            return None
        raise ValueError(f"null is not allowed; expected {leaf.type_name}{_bracket(leaf)}")
    if isinstance(value, dict):
        raise ValueError(f"is one value, not a section; expected {leaf.type_name}{_bracket(leaf)}")
    if leaf.many:
        if not isinstance(value, list | tuple):
            shown = _text(value, raw)
            raise ValueError(f"{shown!r} is not a list; write [{shown}]")
        return [_check_item(leaf, item) for item in value]
    if isinstance(value, list | tuple):
        raise ValueError(f"{list(value)} is a list; expected {leaf.type_name}{_bracket(leaf)}")
    return _check_item(leaf, value, raw)


def _check_item(leaf: Leaf, value: Any, raw: str | None = None) -> Any:
    value = _convert(leaf, value, raw)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    bounds = leaf.bounds
    if "choices" in bounds:
        if value not in bounds["choices"]:
            near = did_you_mean(value, bounds["choices"])
            raise ValueError(f"{value!r} is not allowed.{near} Allowed: {', '.join(bounds['choices'])}")
        return value
    tests = {
        "low": lambda bound: value >= bound,
        "high": lambda bound: value <= bound,
        "above": lambda bound: value > bound,
        "below": lambda bound: value < bound,
    }
    if any(name in bounds and not inside(bounds[name]) for name, inside in tests.items()):
        raise ValueError(f"{value!r} is out of range; allowed: {leaf.allowed}")
    return value


def _convert(leaf: Leaf, value: Any, raw: str | None) -> Any:
    fail = ValueError(f"{_text(value, raw)!r} is not {_article(leaf)}{_bracket(leaf)}")
    if leaf.kind is str:
        if isinstance(value, bool | dict | list):
            raise ValueError(f"{_text(value, raw)!r} is not text; if you mean the word, write it in quotes")
        if not isinstance(value, str | int | float):
            raise fail
        return value if isinstance(value, str) else _text(value, raw)
    if value == MISSING:
        raise ValueError(f"'{MISSING}' (to be supplied) is only for keys that take text")
    if leaf.kind is bool:
        if not isinstance(value, bool):
            raise fail
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fail
    if leaf.kind is int:
        if isinstance(value, float) and not value.is_integer():
            raise fail
        return int(value)
    return float(value)


def _text(value: Any, raw: str | None) -> str:
    return raw if raw is not None else str(value).lower() if isinstance(value, bool) else str(value)


def _article(leaf: Leaf) -> str:
    return {bool: "true or false", int: "an integer", float: "a number", str: "text"}[leaf.kind]


def _bracket(leaf: Leaf) -> str:
    return f" ({leaf.allowed})" if leaf.allowed else ""
