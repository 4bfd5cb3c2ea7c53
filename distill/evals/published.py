"""What the papers report for the released models, to print beside a measurement of the same thing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from distill.models.sources.base import SourceFacts

NOT_THE_SAME = ("_slide", "_chance", "_constant")
_KIND = re.compile(r"\w+")


@dataclass(frozen=True)
class Published:
    """One number of a paper. `metric` is the beginning of the names of ours that measure the same."""

    task: str
    benchmark: str  # as datasets are called here: ade20k, flickr30k, ...
    metric: str
    value: float  # shares in [0, 1], other metrics in their own unit
    source: str


def published(facts: SourceFacts) -> dict[str, list[Published]]:
    """The published numbers of the released model that `facts` describe, by task; empty for any other model."""
    found: dict[str, list[Published]] = {}
    for row in _table().get(facts.variant or "", []):
        found.setdefault(row.task, []).append(row)
    return found


def beside(facts: SourceFacts, results: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Published]:
    """The published numbers that `results` (`TaskResult.as_dict` by label) measure too, by label and metric of ours."""
    known = published(facts)
    found: dict[tuple[str, str], Published] = {}
    for label, result in results.items():
        kind = _KIND.match(result["dataset"])
        for row in known.get(result["task"], ()):
            if kind is not None and row.benchmark == kind[0]:
                found |= {(label, name): row for name in result["metrics"] if _measures(name, row.metric)}
    return found


def _measures(name: str, metric: str) -> bool:
    """`i2t_r1_cls2` measures `i2t_r1`; but `miou_value_slide` is not `miou_value`, and a trivial answer is no model."""
    return name == metric or (name.startswith(f"{metric}_") and not name.endswith(NOT_THE_SAME))


@lru_cache
def _table() -> dict[str, list[Published]]:
    text = resources.files("distill.evals").joinpath("published.json").read_text(encoding="utf-8")
    return {variant: [Published(**row) for row in rows] for variant, rows in json.loads(text).items()}
