"""`VARIANT.average`: the averaged trunk of a variant with `teacher.mode: ema`, which is the network that teaches.

Such a run has two image towers, the student's own and its average. Tables and claims know both: a variant's name means
its own weights, the name with `.average` the averaged trunk with the student's text tower. In cell.json the scores of
the second are the metrics that begin with `average/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENDING, PREFIX = ".average", "average/"


def plain(name: str) -> str:
    """The variant that a name in a comparison means: `teacher` for `teacher.average`."""
    return name.removesuffix(ENDING)


def is_average(name: str) -> bool:
    return name.endswith(ENDING)


def metric_of(name: str, metric: str) -> str:
    """The metric of the plain variant that holds `metric` of `name`."""
    return PREFIX + metric if is_average(name) else metric


def averages_trunk(content: Mapping[str, Any]) -> bool:
    """Whether a cell keeps an averaged trunk, from its content."""
    taught = content["objective.patch.weight"] > 0 or content["objective.cls.weight"] > 0
    return content["teacher.mode"] == "ema" and taught


def shown(results: Mapping[str, Any]) -> list[str]:
    """The names that tables of scores have a row for: every variant, and after it its average where that was scored."""
    scored = {row["variant"] for row in results["rows"] if _scored(row)}
    return [name for v in results["variants"] for name in ([v, v + ENDING] if v in scored else [v])]


def rows_of(results: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The rows that a name's scores come from: all of a variant's, or those where its averaged trunk was scored."""
    own = [row for row in results["rows"] if row["variant"] == plain(name)]
    return [row for row in own if _scored(row)] if is_average(name) else own


def _scored(row: Mapping[str, Any]) -> bool:
    """Whether a row has scores of an averaged trunk."""
    return any(key.startswith(PREFIX) for key in row["metrics"])


def title_of(results: Mapping[str, Any], name: str) -> str:
    """What a row is, in words."""
    if is_average(name):
        return f"averaged trunk of {plain(name)}, the network that teaches"
    return str(results["variants"][name]["title"])
