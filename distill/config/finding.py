"""One result of a cross-field rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.config.fields import schema
from distill.config.schema import Config


@dataclass(frozen=True)
class Finding:
    """`text` begins with the key to change. `keys`: every key the rule looked at, that one first."""

    keys: tuple[str, ...]
    text: str
    warning: bool = False  # legal, but probably not meant

    def place(self, where: Mapping[str, str]) -> str:
        """Where the first of the keys that somebody set was set; empty when all are defaults."""
        places = [where.get(key, "default") for key in self.keys]
        return next((place for place in places if place not in ("default", "auto")), "")


def is_set(config: Config, key: str) -> bool:
    """Is this key away from its default?"""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value != schema()[0][key].default
