"""One training step as a module: every student, and a co-trained teacher, from one teacher pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distill.models.vision import ImageOutput
from distill.training.learner import Learner, Losses, Pixels
from distill.training.negatives import Features, Slopes
from distill.views.batch import Batch
from teachers.base import Teacher
from teachers.cotrained import CotrainedTeacher
from teachers.targets import Targets


class StepOutput:
    """What one micro-batch gives: the loss to minimise, its parts by `learner/term`, and tensors to diagnose with.

    Not a dataclass: Fabric would walk into one and rebuild every tensor in it.
    """

    def __init__(self, loss: Tensor, parts: dict[str, Tensor], clean: ImageOutput, targets: Targets):
        self.loss = loss
        self.parts = parts
        self.clean = clean  # the first student's clean output
        self.targets = targets


class Distiller(nn.Module):
    """`forward(batch, patch_temperature)` is a whole step's computation; the teacher itself is not a submodule."""

    def __init__(self, students: dict[str, Learner], teacher: Teacher):
        super().__init__()
        self.students = nn.ModuleDict(students)
        # A co-trained teacher is trained, so its learner belongs to the tree; every other teacher stays outside it.
        self.co_learner = teacher.learner if isinstance(teacher, CotrainedTeacher) else None
        object.__setattr__(self, "teacher", teacher)

    teacher: Teacher

    @property
    def teacher_learner(self) -> Learner | None:
        """The co-trained teacher, None in every other mode."""
        assert self.co_learner is None or isinstance(self.co_learner, Learner)
        return self.co_learner

    def student(self, name: str) -> Learner:
        learner = self.students[name]
        assert isinstance(learner, Learner)
        return learner

    def learners(self) -> dict[str, Learner]:
        """Everything with losses, by the name used in logs."""
        found = {name: self.student(name) for name in self.students}
        if self.teacher_learner is not None:
            found["teacher"] = self.teacher_learner
        return found

    @torch.no_grad()
    def clamp_temperature(self, lowest: float) -> None:
        """Keeps every learned contrastive temperature at or above `lowest`."""
        for learner in self.learners().values():
            learner.model.log_temperature.clamp_(min=math.log(lowest))

    def features(self, batch: Batch) -> dict[str, Features | None]:
        """What the contrast of each learner sees of a micro-batch: the passes that `forward` begins with, in its order.

        The loss over several micro-batches is made of these (see `distill.training.negatives`).
        """
        return self._features(batch, self._cleans(batch.images()))

    def _cleans(self, images: Tensor) -> dict[str, ImageOutput]:
        return {name: learner.clean(images) for name, learner in self.learners().items()}

    def _features(self, batch: Batch, cleans: dict[str, ImageOutput]) -> dict[str, Features | None]:
        return {name: learner.features(batch, cleans[name]) for name, learner in self.learners().items()}

    def forward(
        self,
        batch: Batch,
        patch_temperature: float,
        slopes: dict[str, Slopes] | None = None,
        features_only: bool = False,
    ) -> StepOutput | dict[str, Features | None]:
        """`slopes`: of the contrast, by learner, when it is taken over several micro-batches.

        `features_only`: returns `features(batch)`, through here, where wrappers gather weights and set the precision.
        """
        if features_only:
            return self.features(batch)
        pixels = Pixels.of(batch)
        views = {name: learner.views(pixels) for name, learner in self.learners().items()}
        cleans = {name: seen.clean for name, seen in views.items()}
        features = self._features(batch, cleans)
        shared = cleans["teacher"] if self.teacher_learner is not None else next(iter(cleans.values()))
        targets = self.teacher.targets(pixels.images, shared, patch_temperature, view=batch.view)
        losses: dict[str, Losses] = {
            name: learner.losses(pixels, views[name], features[name], targets, slopes[name] if slopes else None)
            for name, learner in self.learners().items()
        }
        parts = {f"{name}/{term}": value for name, loss in losses.items() for term, value in loss.parts.items()}
        total = torch.stack([loss.total for loss in losses.values()]).sum()
        return StepOutput(total, parts, next(iter(cleans.values())), targets)
