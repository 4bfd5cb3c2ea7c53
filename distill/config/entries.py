"""What a recipe file, a command line or a Python call sets: flat entries that remember where they stand."""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from distill.config.fields import schema

DEEPEST = 8  # levels of nesting; the schema has four


@dataclass(frozen=True)
class Entry:
    """`path` is set to `value`, at `where`. `raw` is the text the value was parsed from, when there is one.

    `part`: it is an item's key of a list of sections, whose `NewList` came before and holds all of it.
    """

    path: tuple[str, ...]
    value: Any
    where: str
    raw: str | None = None
    part: bool = False

    @property
    def key(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class NewList:
    """As a value: the list of sections at this path is replaced by one of `length` fresh items.

    `content`: the list as it was given, where it was not a file's.
    """

    length: int
    content: Any = None


@dataclass(frozen=True)
class Problem:
    """Something to put right: where it stands (may be empty) and the sentence that says so."""

    where: str
    text: str

    @property
    def rank(self) -> tuple[bool, str, int]:
        """Order in a list of problems: files by line, then the rest."""
        file, colon, line = self.where.rpartition(":")
        return (False, file, int(line)) if colon and line.isdigit() else (True, self.where, 0)

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


class _Loader(yaml.SafeLoader):
    """YAML with the scalars people expect: `5e-4` is a number; `no`, `on` and dates are words; `010` is ten."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))


def parse_scalar(text: str) -> Any:
    """The value of `text` as YAML: number, boolean, null, list, mapping or string. Raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)


def read_yaml(text: str, name: str) -> tuple[list[Entry], list[Problem]]:
    """Entries of a recipe's text; `name` is the file's name in messages. Syntax errors and duplicates are problems."""
    problems: list[Problem] = []
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return [], []
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1
            return [], [Problem(f"{name}:{line}", "a recipe is lines of 'key: value' (mind the space after the colon)")]
        entries = list(_flatten(loader, node, (), name, problems))
    except yaml.YAMLError as error:
        return [], [_syntax_problem(error, name)]
    finally:
        loader.dispose()
    first: dict[tuple[str, ...], str] = {}
    for entry in entries:
        if entry.path in first:
            problems.append(
                Problem(entry.where, f"{entry.key}: given twice (first on line {first[entry.path].rpartition(':')[2]})")
            )
        first.setdefault(entry.path, entry.where)
    return entries, problems


def _syntax_problem(error: yaml.YAMLError, name: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    where = f"{name}:{mark.line + 1}" if mark else name
    hints = {"\\t": "indent with spaces, not tabs", "mapping values": "put text with ': ' in it in quotes"}
    hint = next((f" ({text})" for sign, text in {**hints, "'?'": "put ??? in quotes"}.items() if sign in what), "")
    return Problem(where, f"not valid YAML: {what}{hint}")


def _flatten(
    loader: _Loader, node: yaml.MappingNode, prefix: tuple[str, ...], name: str, problems: list[Problem]
) -> Iterator[Entry]:
    if len(prefix) > DEEPEST:
        problems.append(Problem(f"{name}:{node.start_mark.line + 1}", f"{'.'.join(prefix[:3])}...: nested too deeply"))
        return
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        path = prefix + tuple(str(key_node.value).split("."))
        where = f"{name}:{line}"
        if isinstance(value_node, yaml.MappingNode):
            yield from _flatten(loader, value_node, path, name, problems)
        elif isinstance(value_node, yaml.SequenceNode) and _holds_mappings(value_node):
            yield Entry(path, NewList(len(value_node.value)), where)
            for index, item in enumerate(value_node.value):
                inner = (*path, str(index))
                if isinstance(item, yaml.MappingNode):
                    yield from _flatten(loader, item, inner, name, problems)
                else:
                    yield Entry(inner, loader.construct_object(item, deep=True), f"{name}:{item.start_mark.line + 1}")
        else:
            raw = value_node.value if isinstance(value_node, yaml.ScalarNode) else None
            yield Entry(path, loader.construct_object(value_node, deep=True), where, raw)


def _holds_mappings(node: yaml.SequenceNode) -> bool:
    return any(isinstance(item, yaml.MappingNode) for item in node.value)


def read_overrides(overrides: list[str]) -> tuple[list[Entry], list[Problem]]:
    """Entries of `key=value` words from the command line."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    where = "command line"
    for word in overrides:
        key, equals, text = word.partition("=")
        key = key.strip()
        if word.startswith("-"):
            plain = key.lstrip("-").replace("-", "_")
            problems.append(Problem(where, f"'{word}': settings are key=value; write {plain}={text or 'VALUE'}"))
        elif not equals:
            example = f"{word}=VALUE" if word in schema()[0] else "mask.ratio=0.5"
            problems.append(Problem(where, f"'{word}': settings are key=value without spaces, as {example}"))
        elif not key or "" in key.split("."):
            problems.append(Problem(where, f"'{word}': no key before '='" if not key else f"'{key}': stray dot"))
        else:
            try:
                value = parse_scalar(text)
            except yaml.YAMLError:
                value = text  # braces of shard ranges and other text that is not YAML
            leaf = schema()[0].get(key)
            if leaf and leaf.kind is str and not leaf.many and isinstance(value, dict | list):
                value = text  # as in data.shards=pipe: cat a.tar
            entries.extend(from_object(tuple(key.split(".")), value, where, text))
    return entries, problems


def from_object(
    path: tuple[str, ...], value: Any, where: str, raw: str | None = None, part: bool = False
) -> Iterator[Entry]:
    """Entries of a Python value: dictionaries become sections, lists of dictionaries lists of sections.

    Paths are taken as text, NumPy's numbers and arrays as Python's.
    """
    value = _plain(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from from_object((*path, *str(key).split(".")), inner, where, part=part)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield Entry(path, NewList(len(value), value), where, raw, part)
        for index, item in enumerate(value):
            yield from from_object((*path, str(index)), item, where, part=True)
    else:
        yield Entry(path, value, where, raw, part)


def _plain(value: Any) -> Any:
    """`value` of Python's own types, as YAML has them, where it has such a meaning; else as it is."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, numbers.Real) and not isinstance(value, int | float):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value
