"""What the papers report for the released models, to print beside a measurement of the same thing.

A model trained here has no numbers of its own: beside it stand those of the released model nearest in size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

from distill.models.sources.base import SourceFacts

NOT_THE_SAME = {"slide", "chance", "constant", "patches"}  # words in a name of ours
MILLIONS = {"S": 22, "B": 86, "L": 303, "So400m": 412, "g": 1136}  # image parameters of the released sizes
TRAINED_HERE = "run"  # kind of a source


@dataclass(frozen=True)
class Published:
    """One number of a paper. `metric` is the beginning of the names of ours that measure the same."""

    task: str
    benchmark: str  # as datasets are called here: ade20k, flickr30k, ...
    split: str  # the one that was scored, as it is called here
    metric: str
    value: float  # shares in [0, 1], other metrics in their own unit
    source: str
    protocol: Mapping[str, Any] = field(default_factory=dict, hash=False)  # options that it is a number of


def variant_for(facts: SourceFacts) -> str | None:
    """The released model whose numbers are shown: `facts`'s own; for one trained here the nearest; else none."""
    if facts.variant is not None or facts.kind != TRAINED_HERE:
        return facts.variant
    return min(_table(), key=lambda name: (_distance(name, facts.image_parameters), not name.startswith("TIPSv2")))


def _distance(variant: str, parameters: int) -> float:
    """How far apart two sizes are, by their ratio."""
    size = variant.split()[1].partition("/")[0]
    return abs(math.log(max(parameters, 1) / (MILLIONS[size] * 1e6)))


def published(facts: SourceFacts) -> dict[str, list[Published]]:
    """The published numbers of the released model that `variant_for` names, by task; empty where it names none."""
    found: dict[str, list[Published]] = {}
    for row in _table().get(variant_for(facts) or "", []):
        found.setdefault(row.task, []).append(row)
    return found


def beside(facts: SourceFacts, results: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Published]:
    """The published numbers that `results` (`TaskResult.as_dict` by label) measure too, by label and metric of ours.

    A benchmark is the same when its kind and its split are; and it must have been measured with the options of the
    published number, where these are known.
    """
    known = published(facts)
    found: dict[tuple[str, str], Published] = {}
    for label, result in results.items():
        for row in known.get(result["task"], ()):
            same = all(result["protocol"].get(name) == value for name, value in row.protocol.items())
            if same and result["dataset"] == f"{row.benchmark} {row.split}":
                found |= {(label, name): row for name in result["metrics"] if _measures(name, row.metric)}
    return found


def _measures(name: str, metric: str) -> bool:
    """`i2t_r1_cls2` measures `i2t_r1`; but `miou_value_slide` is not `miou_value`, the mean of patches is no CLS token,
    and a trivial answer no model.
    """
    more = name.removeprefix(f"{metric}_")
    return name == metric or (more != name and NOT_THE_SAME.isdisjoint(more.split("_")))


@lru_cache
def _table() -> dict[str, list[Published]]:
    text = resources.files("distill.evals").joinpath("published.json").read_text(encoding="utf-8")
    return {variant: [Published(**row) for row in rows] for variant, rows in json.loads(text).items()}
