"""What the papers report for the released models, to print beside a measurement of the same thing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from distill.evals.results import TaskResult
from distill.models.sources.base import SourceFacts

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


def beside(facts: SourceFacts, results: Mapping[str, TaskResult]) -> list[str]:
    """A line for every published number that `results` (by label) measure too: ours, theirs, and where it stands."""
    lines = []
    known = published(facts)
    for label, result in results.items():
        kind = _KIND.match(result.dataset)
        for row in known.get(result.task, ()):
            if kind is None or row.benchmark != kind[0]:
                continue
            ours = {name: value for name, value in result.metrics.items() if _measures(name, row.metric)}
            listed = ", ".join(f"{name} {_number(value, row)}" for name, value in ours.items())
            if listed:
                lines.append(
                    f"{label} on {row.benchmark}: {listed}; published {_number(row.value, row)} ({row.source})"
                )
    return lines


def _measures(name: str, metric: str) -> bool:
    """`i2t_r1_cls2` measures `i2t_r1`; but `miou_value_slide` is not `miou_value`: slid over or seen whole."""
    return name == metric or (name.startswith(f"{metric}_") and not name.endswith("_slide"))


def _number(value: float, row: Published) -> str:
    in_units = row.task in ("depth", "normals")
    return f"{value:.3g}" if in_units else f"{100 * value:.1f} %"


@lru_cache
def _table() -> dict[str, list[Published]]:
    text = resources.files("distill.evals").joinpath("published.json").read_text(encoding="utf-8")
    return {variant: [Published(**row) for row in rows] for variant, rows in json.loads(text).items()}
