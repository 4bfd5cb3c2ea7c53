"""A spare average of a student: followed while it trains, evaluated and used, never learned from.

DINOv2's distillation keeps one as its final model (arXiv 2304.07193, section 5). It holds both towers and the
temperature, no heads; it has no gradient and takes no pass, only memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from distill.models.pair import ImageTextModel
from distill.models.sharding import shard
from teachers import average


class Spare:
    """An exponential moving average of `student`'s weights, `momentum` constant; starts where the student starts."""

    def __init__(self, student: ImageTextModel, momentum: float):
        self.student, self.momentum = student, momentum
        self.model = copy.deepcopy(student).requires_grad_(False).eval()

    def follow(self) -> None:
        """Moves towards the student; called once per optimiser step, after it."""
        average.follow(self.model, self.student, self.momentum)

    def restart(self, saved: dict[str, Tensor] | None) -> None:
        """Goes on from a saved average, or starts again from the student where there is none."""
        self.model.load_state_dict(self.student.state_dict() if saved is None else saved)
        self.model.text.set_norm_eps(self.student.text.norm_eps)  # loaded with the student's weights

    def shard(self, mesh: Any) -> None:
        """Spreads it over the ranks of `mesh` as its student is: each rank moves the slices that it holds of both."""
        shard(self.model, mesh, keep_root=False)

    def to(self, device: torch.device) -> Spare:
        self.model.to(device)
        return self
