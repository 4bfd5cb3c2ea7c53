"""`teacher.mode: frozen`: a given model whose trunk, heads and centres never change (TIPSv2 section 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.config.schema import ObjectiveConfig
from distill.models.sharding import shard
from distill.models.vision import ImageOutput
from distill.objectives.phi_s import PhiSNorm
from teachers.base import Teacher
from teachers.heads import MADE
from teachers.meeting import Meeting, resize_images, resize_patches
from teachers.target_cache import TargetCache
from teachers.targets import Embedded, TargetHeads, Targets

NORMS = ("feature_norm", "cls_norm")  # what a run learns about the features of a teacher with its own heads


class FrozenTeacher(Teacher):
    """Runs its own trunk on the clean global view, without gradients (losses save its targets: no inference mode).

    Where its patch size differs from the student's, `meeting` says what is resized: the image it sees, or its patch
    features before the head. `kind` says where its prototypes come from (own, fitted, trained; None: all targets are
    features). Until `prepared`, what is made before the first step is missing.
    """

    mode = "frozen"
    cache: TargetCache | None = None

    def __init__(
        self, model: Any, heads: TargetHeads, objective: ObjectiveConfig, meeting: Meeting, kind: str | None = "own"
    ):
        super().__init__(heads, objective)
        self.model = model  # `ImageTextModel` or `AdaptedModel`
        self.meeting = meeting
        self.kind = kind
        measured = isinstance(heads.feature_norm, PhiSNorm) or isinstance(heads.cls_norm, PhiSNorm)
        self.prepared = kind not in MADE and not measured

    @torch.no_grad()
    def look(self, images: Tensor) -> ImageOutput:
        """Its output for images `[B, 3, H, W]`, cls `[B, C, D]` and patches `[B, N, D]` on the students' grid."""
        output = self.model.image(resize_images(images, self.meeting.size))
        own, student = self.meeting.teacher, self.meeting.student
        if own != student:
            output = ImageOutput(output.cls, resize_patches(output.patches, (own, own), (student, student)))
        return output

    @torch.no_grad()
    def targets(
        self,
        images: Tensor,
        clean: ImageOutput | None,
        temperature: float,
        learn: bool = True,
        view: np.ndarray | None = None,
    ) -> Targets:
        assert self.heads is not None and self.prepared, "the teacher's heads were not made yet"
        # Frozen centres: they belong to the heads. Only the statistics of feature targets are learnt here.
        embedded = self.embedded(images, view)
        return self.heads.targets_of(embedded, self.objective, temperature, learn, centers=False)

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
        return self.heads.embed(self.look(images), self.objective)

    def tick(self, center_momentum: float) -> None:
        assert self.heads is not None
        self.heads.tick_norms(center_momentum)

    def shard(self, mesh: Any) -> None:
        for tower in (self.model.image, self.model.text):
            if tower is not None:
                shard(tower, mesh, keep_root=False)

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "model": self.model}

    def state(self) -> dict[str, Any]:
        """What the source does not give: feature statistics, and heads that were fitted or trained for this run.

        The trunk and its own heads come from the source, whose hash the checkpoint carries.
        """
        return {"forwards": self.forwards, "prepared": self.prepared, "heads": self._made()}

    def load(self, state: dict[str, Any]) -> None:
        assert self.heads is not None
        self.forwards, self.prepared = state["forwards"], state["prepared"]
        wanted = set(self._made())
        missing, strange = self.heads.load_state_dict(state["heads"], strict=False)
        assert not (wanted & set(missing) or strange), (missing, strange)

    def _made(self) -> dict[str, Tensor]:
        assert self.heads is not None
        state = self.heads.state_dict()
        return state if self.kind in MADE else {k: v for k, v in state.items() if k.split(".")[0] in NORMS}
