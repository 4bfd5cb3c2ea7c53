"""Layers of entries merged into one value for each key, then typed, then built into a `Config`."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.config.entries import Entry, NewList, Problem
from distill.config.fields import check_value, leaf_of, list_sections, schema, suggestion
from distill.config.resolved import Value
from distill.config.schema import Config


class State:
    """The value of every key while layers are applied, starting from the defaults. Problems collect in `.problems`."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.problems: list[Problem] = []
        for key, leaf in schema()[0].items():
            if ".*." not in key:
                self.values[key] = Value(leaf.default, "default")
        for section in list_sections():
            self._new_list(section, 1)

    def apply(self, entries: list[Entry]) -> None:
        refused: set[tuple[str, ...]] = set()  # lists whose items are not worth a problem each
        for entry in entries:
            if any(entry.path[:length] in refused for length in range(1, len(entry.path))):
                continue
            if entry.path[0] in list_sections():
                self._apply_to_list(entry)
            elif isinstance(entry.value, NewList):
                refused.add(entry.path)
                self._problem(entry.where, f"{entry.key}: a list of sections, but only students is one")
            else:
                self._set(entry.key, entry.key, entry)

    def _set(self, key: str, shown: str, entry: Entry) -> None:
        """Set concrete `key`; `shown` is how the user wrote it."""
        if key in self.values:
            self.values[key] = Value(entry.value, entry.where, entry.raw)
            return
        inner = [known for known in self.values if known.startswith(key + ".")]
        if inner:
            if entry.value is not None:  # `section:` with nothing under it changes nothing
                space = " (mind the space after the colon)" if ":" in (entry.raw or "") else ""
                self._problem(entry.where, f"{shown}: a section; set one of its keys, as {inner[0]}{space}")
            return
        outer = key.rsplit(".", 1)[0]
        if outer in self.values:
            self._problem(entry.where, f"{outer}: one value ({leaf_of(outer).type_name}), not a section")
            return
        note = " ('base' belongs in a recipe file)" if key == "base" else ""
        self._problem(entry.where, f"{shown}: unknown key{note}.{suggestion(shown)}")

    # ---- lists of sections: students.0.arch, students.NAME.arch, and students.arch for all of them

    def _new_list(self, section: str, length: int) -> None:
        self.values = {key: value for key, value in self.values.items() if not key.startswith(section + ".")}
        for index in range(length):
            for key, leaf in schema()[0].items():
                if key.startswith(f"{section}.*."):
                    self.values[key.replace("*", str(index))] = Value(leaf.default, "default")

    def _apply_to_list(self, entry: Entry) -> None:
        section, path = entry.path[0], entry.path
        if len(path) == 1:
            if isinstance(entry.value, NewList):
                self._new_list(section, entry.value.length)
            elif entry.value is not None:
                keys = [key.split(".*.")[1] for key in schema()[0] if key.startswith(f"{section}.*.")]
                text = f"{section}: a list with at least one item, each with keys of {', '.join(keys)}"
                self._problem(entry.where, text)
            return
        if f"{section}.*.{path[1]}" in schema()[0]:  # students.arch: all of them
            for index in range(self._length(section)):
                self._set(".".join((section, str(index), *path[1:])), entry.key, entry)
            return
        found = self._index(section, path[1])
        if found is None:
            names = [str(self.values[f"{section}.{i}.name"].value) for i in range(self._length(section))]
            count = f"{section} has {len(names)} ({', '.join(names)})"
            text = f"{entry.key}: no such one; {count}.{suggestion(entry.key) if len(path) == 2 else ''}"
            self._problem(entry.where, text)
        elif len(path) == 2:
            self._problem(entry.where, f"{entry.key}: a section; set one of its keys, as {entry.key}.arch=...")
        else:
            self._set(".".join((section, str(found), *path[2:])), entry.key, entry)

    def _length(self, section: str) -> int:
        return sum(key.startswith(f"{section}.") and key.endswith(".name") for key in self.values)

    def _index(self, section: str, word: str) -> int | None:
        if word.isdigit():
            return int(word) if int(word) < self._length(section) else None
        for index in range(self._length(section)):
            if self.values[f"{section}.{index}.name"].value == word:
                return index
        return None

    def _problem(self, where: str, text: str) -> None:
        self.problems.append(Problem(where, text))


def typed(values: dict[str, Value]) -> tuple[dict[str, Value], list[Problem]]:
    """The values converted to their types, `${other.key}` references filled in; wrong ones left out and reported."""
    result: dict[str, Value] = {}
    problems: list[Problem] = []
    tree = None
    for key, value in sorted(values.items(), key=lambda item: _rank(item[0])):
        content, raw = value.value, value.raw
        try:
            if "${" in str(content):
                _check_form(content)
                tree = tree if tree is not None else _tree(values)
                content, raw = _reference(tree, key), None
            result[key] = Value(check_value(leaf_of(key), content, raw), value.where, value.raw)
        except ValueError as error:
            problems.append(Problem("" if value.where == "default" else value.where, f"{key}: {error}"))
    return result, problems


def _rank(key: str) -> tuple[int, int, int]:
    """Position of a concrete key: the schema's order, students one after the other."""
    keys = list(schema()[0])
    place = keys.index(leaf_of(key).key)
    section, _, rest = key.partition(".")
    if section not in list_sections():
        return place, 0, 0
    first = next(number for number, known in enumerate(keys) if known.startswith(f"{section}.*."))
    return first, int(rest.split(".")[0]), place


def _tree(values: dict[str, Value]) -> Any:
    """Every value, where references are looked up; without those that are written wrongly, which are reported."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        with contextlib.suppress(ValueError):
            _check_form(value.value)
            kept[key] = value.value
    return OmegaConf.create(nested(kept))


def _check_form(content: Any) -> None:
    """Raises `ValueError` where `${` opens something that is no reference."""
    if "${" in str(content):
        try:
            OmegaConf.create([content])
        except OmegaConfBaseException as error:
            raise ValueError(
                f"{str(content)!r} is no reference to another key, ${{other.key}}: {_why(error)}"
            ) from None


def _reference(tree: Any, key: str) -> Any:
    try:
        content = OmegaConf.select(tree, key, throw_on_missing=True)
        return OmegaConf.to_container(content, resolve=True) if OmegaConf.is_config(content) else content
    except OmegaConfBaseException as error:
        raise ValueError(_why(error)) from None


def _why(error: OmegaConfBaseException) -> str:
    return f"{str(error).splitlines()[0]} (write \\${{...}} for a literal dollar and brace)"


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """`{"students.0.arch": x}` -> `{"students": [{"arch": x}]}`."""
    root: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        place = root
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    for section in list_sections():
        if section in root:
            root[section] = list(root[section].values())
    return root


def build(values: dict[str, Value]) -> Config:
    """A `Config` of typed values; keys that are absent keep their defaults."""
    tree = nested({key: value.value for key, value in values.items()})
    return typing.cast(Config, _build(Config, tree))


def _build(cls: type, tree: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        if item.name not in tree:
            continue
        hint, value = hints[item.name], tree[item.name]
        inner = typing.get_args(hint)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            value = _build(hint, value)
        elif inner and isinstance(inner[0], type) and dataclasses.is_dataclass(inner[0]):
            value = [_build(inner[0], one) for one in value]
        arguments[item.name] = value
    return cls(**arguments)
