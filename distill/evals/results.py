"""What every task returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

ABSENT: Any = object()  # stands for the value of a key that is not there
UNIT = "unit"  # in a protocol: what lengths are counted in, where the dataset has a unit of its own


@dataclass
class TaskResult:
    """The outcome of one task on one dataset. Plain data: `asdict` of it is JSON."""

    task: str  # registry name, such as "zeroshot_seg"
    dataset: str  # what was measured on, such as "scenes:64 test"
    metrics: dict[str, float]  # flat; shares lie in [0, 1], names end in the feature used: "miou_value"
    protocol: dict[str, Any]  # every choice that moves the numbers
    counts: dict[str, int]  # images, classes, captions, pixels, ... that went in
    seconds: float  # wall time of this task; a shared pass over the images counts for each task that used it
    details: dict[str, Any] = field(default_factory=dict)  # longer tables, such as the IoU of each class
    per_image: dict[str, Any] = field(default_factory=dict)  # what a bootstrap needs (`distill.evals.per_image`)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Difference(NamedTuple):
    """Where two mappings differ: the key, those of nested mappings joined by dots, and its value in both or ABSENT."""

    key: str
    one: Any
    two: Any


def first_difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> Difference | None:
    """The first key, in the order of `one` and then of `two`, that is not in both with one value; None for equals."""
    for key in dict.fromkeys([*one, *two]):
        values = one.get(key, ABSENT), two.get(key, ABSENT)
        if isinstance(values[0], Mapping) and isinstance(values[1], Mapping):
            inner = first_difference(*values)
            if inner is not None:
                return inner._replace(key=f"{key}.{inner.key}")
        elif values[0] is not values[1] and values[0] != values[1]:
            return Difference(key, *values)
    return None
