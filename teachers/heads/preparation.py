"""What a frozen teacher's targets need before the first step: one pass over some batches serves all of it."""

from __future__ import annotations

from typing import Protocol

from distill.config.schema import Config
from distill.models.vision import ImageOutput
from teachers.frozen import FrozenTeacher
from teachers.heads import wants_features
from teachers.heads.fitted import Fit, FittedHeads
from teachers.heads.phi_s import Measurement
from teachers.heads.trained import HeadTraining


class Preparation(Protocol):
    """One thing that is made from a stream of the teacher's clean outputs."""

    def add(self, output: ImageOutput) -> None:
        """Takes in a batch: cls `[B, C, D]`, patches `[B, N, D]` on the students' grid."""

    def finish(self) -> None:
        """After the last batch; raises UserError when there were too few."""

    def report(self) -> str:
        """What came of it, in a few words."""


def preparations(teacher: FrozenTeacher, cfg: Config) -> list[Preparation]:
    """What `teacher` still needs, for `teacher.heads.steps` batches in `train.accumulate` parts each."""
    assert teacher.heads is not None
    found: list[Preparation] = []
    if isinstance(teacher.heads.heads, FittedHeads):
        found.append(Fit(teacher.heads.heads, cfg, cfg.teacher.heads.steps * cfg.train.accumulate))
    elif teacher.kind == "trained":
        found.append(HeadTraining(teacher.heads, cfg))
    if wants_features(cfg) and cfg.objective.feature_norm == "phi_s":
        found.append(Measurement(teacher.heads))
    return found
