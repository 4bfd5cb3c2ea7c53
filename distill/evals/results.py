"""What every task returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


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
