"""`teacher.mode: cotrained`: a larger encoder pretrains in the same step as the students that follow it."""

from __future__ import annotations

from torch import nn

from distill.config.schema import ObjectiveConfig
from distill.models.joint_heads import Heads
from teachers.ema_head import EmaHeadTeacher


class CotrainedTeacher(EmaHeadTeacher):
    """Head-only EMA teacher of a model that trains beside the students; all of them follow the same targets.

    `learner` is that model with its losses. It has its own optimiser, and its clean pass gives everyone's targets.
    """

    mode = "cotrained"

    def __init__(
        self,
        learner: nn.Module,
        heads: Heads,
        objective: ObjectiveConfig,
        prototypes: int,
        width: int | None,
        cls_width: int | None,
    ):
        super().__init__(heads, objective, prototypes, width, cls_width)
        self.learner = learner
