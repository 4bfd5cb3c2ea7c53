"""The class names of the benchmarks, data files with their source."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("data")


@cache
def class_list(name: str) -> tuple[str, ...]:
    """The names in `data/NAME.json`, in the order of the labels: `{"source": ..., "classes": [...]}`."""
    return tuple(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["classes"])
