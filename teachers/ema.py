"""`teacher.mode: ema`: an average of the student's trunk and heads, as DINOv2 and TIPS v1 pretrain."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.config.schema import ObjectiveConfig
from distill.models.joint_heads import Heads
from distill.models.sharding import shard
from distill.models.vision import ImageOutput, VisionTower
from teachers import average
from teachers.base import Teacher
from teachers.targets import TargetHeads, Targets


class EmaTeacher(Teacher):
    """Holds a second trunk and second heads, both averaged; one extra trunk pass a step."""

    mode = "ema"

    def __init__(
        self,
        trunk: VisionTower,
        heads: Heads,
        objective: ObjectiveConfig,
        prototypes: int,
        width: int | None,
        cls_width: int | None,
    ):
        super().__init__(TargetHeads(copy.deepcopy(heads), prototypes, width, cls_width), objective)
        self.student_trunk, self.student_heads = trunk, heads
        self.trunk = copy.deepcopy(trunk)

    @torch.no_grad()
    def targets(
        self,
        images: Tensor,
        clean: ImageOutput | None,
        temperature: float,
        learn: bool = True,
        view: np.ndarray | None = None,
    ) -> Targets:
        assert self.heads is not None
        self.forwards += 1
        return self.heads.targets(self.trunk(images), self.objective, temperature, learn)

    def follow(self, momentum: float) -> None:
        assert self.heads is not None and self.heads.heads is not None
        average.follow(self.trunk, self.student_trunk, momentum)
        average.follow(self.heads.heads, self.student_heads, momentum)

    def shard(self, mesh: Any) -> None:
        shard(self.trunk, mesh, keep_root=False)

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "trunk": self.trunk}
