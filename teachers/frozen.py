"""`teacher.mode: frozen`: a given model whose trunk, heads and centres never change (TIPSv2 section 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.config.schema import ObjectiveConfig
from distill.models.sharding import shard
from distill.models.vision import ImageOutput
from teachers.base import Teacher
from teachers.meeting import Meeting, resize_images, resize_patches
from teachers.target_cache import TargetCache
from teachers.targets import Embedded, TargetHeads, Targets


class FrozenTeacher(Teacher):
    """Runs its own trunk on the clean global view, in inference mode.

    Where its patch size differs from the student's, `meeting` says what is resized: the image it sees, or its patch
    features before the head.
    """

    mode = "frozen"
    cache: TargetCache | None = None

    def __init__(self, model: Any, heads: TargetHeads, objective: ObjectiveConfig, meeting: Meeting):
        super().__init__(heads, objective)
        self.model = model  # `ImageTextModel` or `AdaptedModel`
        self.meeting = meeting

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
        # Frozen centres: they belong to the heads. Only the statistics of feature targets are learnt here.
        learn = learn and self.objective.patch.target == "features"
        return self.heads.targets_of(self.embedded(images, view), self.objective, temperature, learn=learn)

    @torch.no_grad()
    def embedded(self, images: Tensor, view: np.ndarray | None = None) -> Embedded:
        """What targets are made of: kept from an earlier epoch where there is a cache, else from a pass."""
        if self.cache is None:
            return self._embed(images)
        assert view is not None, "targets are kept by view"
        return self.cache.serve(view, images.device, lambda: self._embed(images))

    def _embed(self, images: Tensor) -> Embedded:
        assert self.heads is not None
        self.forwards += 1
        output = self.model.image(resize_images(images, self.meeting.size))
        own, student = self.meeting.teacher, self.meeting.student
        if own != student:
            output = ImageOutput(output.cls, resize_patches(output.patches, (own, own), (student, student)))
        return self.heads.embed(output, self.objective)

    def tick(self, center_momentum: float) -> None:
        assert self.heads is not None
        if self.heads.feature_norm is not None:
            self.heads.feature_norm.tick(center_momentum)

    def shard(self, mesh: Any) -> None:
        for tower in (self.model.image, self.model.text):
            if tower is not None:
                shard(tower, mesh, keep_root=False)

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "model": self.model}

    def state(self) -> dict[str, Any]:
        """Only what moves: the trunk and heads come from the source, whose hash the checkpoint carries."""
        assert self.heads is not None
        norm = self.heads.feature_norm
        return {"forwards": self.forwards, "feature_norm": None if norm is None else norm.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        assert self.heads is not None
        self.forwards = state["forwards"]
        if self.heads.feature_norm is not None:
            self.heads.feature_norm.load_state_dict(state["feature_norm"])
