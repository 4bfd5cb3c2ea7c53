"""The contract every teacher keeps, whatever its mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from torch import Tensor, nn

from distill.config.schema import ObjectiveConfig
from distill.errors import UserError
from distill.models.vision import ImageOutput
from teachers.targets import TargetHeads, Targets


class Teacher(ABC):
    """Gives targets for a batch and follows its student once per optimiser step.

    A teacher is not a module of the trained tree on purpose: what it holds stays out of `parameters()`, of gradient
    synchronisation and, when frozen, of the checkpoint. `modules` names what must move to the device, `state` what a
    resumed run needs.
    """

    mode: str
    forwards: int = 0  # trunk passes made for targets alone

    def __init__(self, heads: TargetHeads | None, objective: ObjectiveConfig):
        self.heads = heads
        self.objective = objective

    @abstractmethod
    def targets(
        self,
        images: Tensor,
        clean: ImageOutput | None,
        temperature: float,
        learn: bool = True,
        view: np.ndarray | None = None,
    ) -> Targets:
        """Targets for the clean global view.

        Args:
            images: `[B, 3, H, W]` in [0, 1].
            clean: the student's own output on the same images, for the modes that share its trunk.
            temperature: teacher temperature of the patch targets.
            learn: whether the batch counts towards the centres.
            view: what the images are, int64 `[B, 8]`, see `distill.views.batch.VIEW`; for targets that are kept.
        """

    def follow(self, momentum: float) -> None:
        """Moves averaged copies towards the student; called once per optimiser step, after it."""

    def tick(self, center_momentum: float) -> None:
        """Moves the centres; called once per optimiser step, after it."""
        if self.heads is not None:
            self.heads.tick(center_momentum)

    def modules(self) -> dict[str, nn.Module]:
        """What the teacher holds besides the student's own modules."""
        return {} if self.heads is None else {"heads": self.heads}

    def shard(self, mesh: Any) -> None:
        """Spreads the towers that are the teacher's own over the ranks of `mesh`; heads and centres stay whole."""
        raise UserError(f"teacher.shard: with teacher.mode {self.mode} the teacher has no towers of its own.")

    def to(self, device: Any) -> Teacher:
        for module in self.modules().values():
            module.to(device).requires_grad_(False).eval()
        return self

    def state(self) -> dict[str, Any]:
        """Weights, centres and counters for the checkpoint."""
        return {"forwards": self.forwards} | {name: module.state_dict() for name, module in self.modules().items()}

    def load(self, state: dict[str, Any]) -> None:
        self.forwards = state["forwards"]
        for name, module in self.modules().items():
            module.load_state_dict(state[name])


class NoTargets(Teacher):
    """Stands where no loss needs a teacher: plain image-text contrast."""

    mode = "no targets"

    def targets(
        self,
        images: Tensor,
        clean: ImageOutput | None,
        temperature: float,
        learn: bool = True,
        view: np.ndarray | None = None,
    ) -> Targets:
        return Targets(cls=None, patch=None)
