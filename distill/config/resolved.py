"""A recipe after merging and checking: the typed config, and where each of its values came from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import yaml

from distill.config.fields import MISSING, leaf_of
from distill.config.recipes import Recipe
from distill.config.schema import Config
from distill.errors import UserError


@dataclass(frozen=True)
class Value:
    """One key's value. `where`: `default`, `FILE:LINE` of a recipe, `command line`, `python` or `auto`."""

    value: Any
    where: str
    raw: str | None = None  # the text it was parsed from


@dataclass(frozen=True)
class Difference:
    """A key that an override changed, for the banner."""

    key: str
    before: Any
    after: Any
    where: str

    def __str__(self) -> str:
        return f"{self.key}: {to_text(self.before)} -> {to_text(self.after)} ({self.where})"


@dataclass
class Resolved:
    """What `load_config` gives."""

    config: Config
    values: dict[str, Value]  # every key of the schema, students by index
    before: dict[str, Value]  # the same without the overrides
    recipe: Recipe
    overrides: list[str]
    warnings: list[str] = field(default_factory=list)  # legal but probably not meant

    @property
    def path(self) -> str:
        """The recipe's name, or its file as it was given."""
        return self.recipe.name

    @property
    def provenance(self) -> dict[str, str]:
        """Dotted key -> `default`, `recipe FILE:LINE`, `command line`, `python` or `auto`."""
        return {key: place(value.where) for key, value in self.values.items()}

    @property
    def missing(self) -> list[str]:
        """Keys the recipe leaves to the user (`???`)."""
        return [key for key, value in self.values.items() if value.value == MISSING]

    def require_complete(self) -> None:
        """Raise a `UserError` naming the keys that must be supplied before a run."""
        if self.missing:
            wanted = "; ".join(f"{key}=... ({leaf_of(key).help})" for key in self.missing)
            raise UserError(f"Recipe {self.path} leaves these to you: {wanted}")

    def set_auto(self, key: str, value: Any) -> None:
        """Record a value that was worked out from the machine or the data (`train.precision` and the like)."""
        target: Any = self.config
        *sections, last = key.split(".")
        for section in sections:
            target = target[int(section)] if section.isdigit() else getattr(target, section)
        if not hasattr(target, last):
            raise KeyError(key)
        setattr(target, last, value)
        self.values[key] = Value(value, "auto")

    def differences(self) -> list[Difference]:
        """What the overrides changed against the recipe, in the order of the schema."""
        changed = []
        for key, value in self.values.items():
            old = self.before.get(key)
            if value.where not in ("default", "auto") and (old is None or old.value != value.value):
                changed.append(Difference(key, old.value if old else None, value.value, value.where))
        return changed

    @property
    def asked(self) -> str:
        """The recipe's text as it stands, then the overrides as comments: what `config.yaml` holds."""
        lines = [f"# recipe: {self.recipe.label}", *(f"# override: {word}" for word in self.overrides)]
        return "\n".join(lines) + "\n\n" + self.recipe.text

    def to_yaml(self) -> str:
        """Every value with where it came from as a comment: what `resolved.yaml` holds. It is a recipe itself."""
        lines = [f"# every value of a run of {self.recipe.label}, and where it came from"]
        opened: list[str] = []
        for key, value in self.values.items():
            *sections, last = key.split(".")
            shared = 0
            while shared < min(len(opened), len(sections)) and opened[shared] == sections[shared]:
                shared += 1
            for depth in range(shared, len(sections)):
                if not sections[depth].isdigit():
                    lines.append(f"{'  ' * depth}{sections[depth]}:")
            first_of_item = bool(sections) and sections[-1].isdigit() and opened != sections
            indent = "  " * (len(sections) - 1) + "- " if first_of_item else "  " * len(sections)
            opened = sections
            text = to_text(value.value).replace("${", "\\\\${")  # a literal dollar and brace stays one when read back
            lines.append(f"{indent}{last}: {text}  # {place(value.where)}")
        return "\n".join(lines) + "\n"


def place(where: str) -> str:
    """`recipe FILE:LINE` for a file's line; the other places as they are."""
    return where if where in ("default", "command line", "python", "auto") else f"recipe {where}"


def to_text(value: Any) -> str:
    """A value as YAML flow text that reads back as the same value."""
    if isinstance(value, str):
        plain = value and all(c.isalnum() or c in "_/" for c in value) and value[0].isalpha()
        if plain and value.lower() not in ("null", "true", "false"):
            return value
        return yaml.dump(value, default_style='"', width=math.inf, allow_unicode=True).rstrip("\n")
    if isinstance(value, list):
        return "[" + ", ".join(to_text(item) for item in value) + "]"
    return json.dumps(value)
