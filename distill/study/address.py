"""What makes two cells the same: the address of a cell's content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from distill.config.schema import Config
from distill.training.fingerprint import LOSS_VERSION

FOLDERS = re.compile(r"""(?<![\w./~])/(?=[^/])(?:[^\s/'",]+/)+""")  # of an absolute path; not those of a url

# Bumped when the student of a frozen teacher comes out otherwise while its configuration is the same.
FROZEN_VERSION = 2  # 2: it no longer starts from the weights that a teacher of the same seed started from

# Keys that change where or how a run is written down, not what is learnt.
SILENT = ["name", "log", "eval", "guard", "data.workers", "data.scenes.cache"]
SILENT += ["teacher.cache.limit", "train.threads", "train.checkpoint_every", "train.keep", "train.log_every"]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; items of a list of sections are numbered (`students.0.arch`)."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = dataclasses.asdict(tree)
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def content(config: Config, teacher: str | None = None) -> dict[str, Any]:
    """The keys of a resolved run that decide what is learnt. `teacher`: the address of the cell that is its source."""
    flat = {k: v for k, v in flatten(config).items() if not any(k == s or k.startswith(s + ".") for s in SILENT)}
    if teacher is not None:
        flat["teacher.source"] = f"cell:{teacher}"
    return flat


def address(values: Mapping[str, Any]) -> str:
    """16 hex digits from the values that differ from the schema's defaults, and the versions of what they mean.

    Leaving defaults out keeps an address when the schema gains a key; `same_content` notices a default that changed.
    """
    default = flatten(Config())
    kept = {k: v for k, v in values.items() if k not in default or default[k] != v}
    versions = {"loss_version": LOSS_VERSION}
    if values.get("teacher.mode") == "frozen":
        versions["frozen_version"] = FROZEN_VERSION
    text = json.dumps({**versions, **kept}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def same_content(stored: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a stored cell was made with the values of today, on every key that both know."""
    return all(same_value(stored[key], now[key]) for key in stored.keys() & now.keys())


def same_value(stored: Any, now: Any) -> bool:
    """Equal, or equal but for the folders that a kept result leaves out."""
    return bool(stored == now or stored == placeless(now))


def placeless(tree: Any) -> Any:
    """A JSON-able tree with the folders of absolute paths replaced: `shards=/data/mine/a.tar` -> `shards=DIR/a.tar`."""
    if isinstance(tree, str):
        return FOLDERS.sub("DIR/", tree)
    if isinstance(tree, Mapping):
        return {key: placeless(value) for key, value in tree.items()}
    return [placeless(value) for value in tree] if isinstance(tree, list | tuple) else tree
