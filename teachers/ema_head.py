"""`teacher.mode: ema_head` (TIPSv2 section 3.4) and `none`: the student's own trunk is the teacher's.

Targets reuse the student's clean pass, detached: no second trunk in memory, no second forward.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.config.schema import ObjectiveConfig
from distill.models.joint_heads import Heads
from distill.models.vision import ImageOutput
from teachers import average
from teachers.base import Teacher
from teachers.targets import TargetHeads, Targets


class EmaHeadTeacher(Teacher):
    """Shared trunk, averaged heads: f_t = f_s, h_t <- momentum * h_t + (1 - momentum) * h_s."""

    mode = "ema_head"

    def __init__(
        self, heads: Heads, objective: ObjectiveConfig, prototypes: int, width: int | None, cls_width: int | None
    ):
        super().__init__(TargetHeads(copy.deepcopy(heads), prototypes, width, cls_width), objective)
        self.student_heads = heads

    def targets(
        self,
        images: Tensor,
        clean: ImageOutput | None,
        temperature: float,
        learn: bool = True,
        view: np.ndarray | None = None,
    ) -> Targets:
        assert self.heads is not None and clean is not None, "this teacher needs the student's clean pass"
        detached = ImageOutput(clean.cls.detach(), clean.patches.detach())
        return self.heads.targets(detached, self.objective, temperature, learn)

    def follow(self, momentum: float) -> None:
        assert self.heads is not None and self.heads.heads is not None
        average.follow(self.heads.heads, self.student_heads, momentum)


class StudentAsTeacher(EmaHeadTeacher):
    """`none`: trunk and heads are the student's, nothing is averaged (the paper reports instability)."""

    mode = "none"

    def __init__(
        self, heads: Heads, objective: ObjectiveConfig, prototypes: int, width: int | None, cls_width: int | None
    ):
        Teacher.__init__(self, TargetHeads(heads, prototypes, width, cls_width), objective)

    def targets(self, *args: Any, **options: Any) -> Targets:
        found = super().targets(*args, **options)
        # Autocast of older torch keeps the weights' bf16 copies, made here without gradient, for the losses to come.
        torch.clear_autocast_cache()
        return found

    def follow(self, momentum: float) -> None:
        """Nothing to average."""

    def to(self, device):  # the heads are trained: only the centres move and stay without gradient
        assert self.heads is not None
        for module in (self.heads.cls_center, self.heads.patch_center, self.heads.feature_norm, self.heads.cls_norm):
            if module is not None:
                module.to(device)
        return self

    def state(self):
        assert self.heads is not None
        own = {k: v for k, v in self.heads.state_dict().items() if not k.startswith("heads.")}
        return {"forwards": self.forwards, "heads": own}

    def load(self, state):
        assert self.heads is not None
        self.forwards = state["forwards"]
        missing = set(self.heads.load_state_dict(state["heads"], strict=False).missing_keys)
        assert all(k.startswith("heads.") for k in missing), missing
