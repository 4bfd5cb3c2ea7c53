"""What a teacher says about a batch, and the averaged heads and centres it says it with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.config.schema import ObjectiveConfig
from distill.models.joint_heads import Heads
from distill.models.vision import ImageOutput
from distill.objectives.patch_distillation import FeatureNorm
from distill.objectives.prototypes import Center, PrototypeTargets, ReadyTargets, mean_logits, sinkhorn, sinkhorn_center


@dataclass
class FeatureTargets:
    """Standardised teacher features to regress, `[B, N, D_teacher]`."""

    features: Tensor


PatchTargets = PrototypeTargets | ReadyTargets | FeatureTargets


@dataclass
class Targets:
    """Teacher targets of one batch, without gradient.

    `cls`: distribution of the teacher's global CLS-1 over prototypes `[B, K]`, or None when the CLS loss is off.
    `patch`: one target a patch of the clean global view, or None when the patch loss is off.
    """

    cls: Tensor | None
    patch: PatchTargets | None


@dataclass
class Embedded:
    """What targets are made of, all that a frozen teacher's trunk and heads contribute to them.

    For prototype targets unit bottleneck vectors: with the teacher's prototypes, its centre and a temperature they
    give the distributions exactly, and are a fraction of the size of features or logits. None where the loss is off.
    """

    cls: Tensor | None  # [B, d] bottleneck vectors of the global CLS-1
    patches: Tensor | None  # [B, N, d] bottleneck vectors, or [B, N, D] features to regress


class TargetHeads(nn.Module):
    """Teacher heads h_t with their centres: turns a clean image output into targets.

    The centres tick once per optimiser step (`tick`), from the mean over all micro-batches and ranks. The centre of the
    patches is taken over all patches, whichever tokens are supervised.
    """

    def __init__(self, heads: Heads, prototypes: int, feature_width: int | None = None):
        super().__init__()
        self.heads = heads
        self.cls_center = Center(prototypes)
        self.patch_center = Center(prototypes)
        self.feature_norm = None if feature_width is None else FeatureNorm(feature_width)

    def with_feature_norm(self, width: int | None) -> TargetHeads:
        """The same heads, with fresh feature statistics of `width` (None: without)."""
        self.feature_norm = None if width is None else FeatureNorm(width)
        return self

    @torch.no_grad()
    def targets(
        self, output: ImageOutput, objective: ObjectiveConfig, patch_temperature: float, learn: bool = True
    ) -> Targets:
        """Targets from the teacher's clean output: cls `[B, C, D]`, patches `[B, N, D]`.

        Args:
            learn: whether this batch counts towards the centres (False for a frozen teacher and when only looking).
        """
        return self.targets_of(self.embed(output, objective), objective, patch_temperature, learn)

    @torch.no_grad()
    def embed(self, output: ImageOutput, objective: ObjectiveConfig) -> Embedded:
        """What `targets_of` needs of the teacher's clean output."""
        cls = self.heads.cls.bottleneck(output.cls[:, 0]) if objective.cls.weight > 0 else None
        if objective.patch.weight == 0:
            return Embedded(cls, None)
        features = objective.patch.target == "features"
        return Embedded(cls, output.patches if features else self.heads.patch.bottleneck(output.patches))

    def embedded_widths(self, objective: ObjectiveConfig) -> tuple[int | None, int | None]:
        """Channels of `Embedded.cls` and of `Embedded.patches`; None where the loss is off."""
        cls = self.heads.cls.directions().shape[1] if objective.cls.weight > 0 else None
        if objective.patch.weight == 0:
            return cls, None
        if objective.patch.target == "features":
            assert self.feature_norm is not None
            return cls, len(self.feature_norm.mean)
        return cls, self.heads.patch.directions().shape[1]

    @torch.no_grad()
    def targets_of(
        self, embedded: Embedded, objective: ObjectiveConfig, patch_temperature: float, learn: bool = True
    ) -> Targets:
        """Targets from what `embed` gave, now or earlier; arguments as of `targets`."""
        cls = None if embedded.cls is None else self._cls(embedded.cls, objective, learn)
        patch = None if embedded.patches is None else self._patch(embedded.patches, objective, patch_temperature, learn)
        return Targets(cls=cls, patch=patch)

    def _cls(self, bottleneck: Tensor, objective: ObjectiveConfig, learn: bool) -> Tensor:
        directions = self.heads.cls.directions()  # [K, d]
        logits = bottleneck.float() @ directions.float().T  # [B, K]
        if learn:
            self.cls_center.accumulate(logits.mean(0), len(logits))
        if objective.cls.balance == "sinkhorn":
            return sinkhorn(logits, objective.cls.teacher_temperature)
        return self.cls_center.probs(logits, objective.cls.teacher_temperature)

    def _patch(self, patches: Tensor, objective: ObjectiveConfig, temperature: float, learn: bool) -> PatchTargets:
        if objective.patch.target == "features":
            assert self.feature_norm is not None
            if learn:
                self.feature_norm.accumulate(patches)
            return FeatureTargets(self.feature_norm(patches))
        bottleneck, directions = patches, self.heads.patch.directions()  # [B, N, d], [K, d]
        if objective.patch.balance == "sinkhorn":
            center = sinkhorn_center(bottleneck, directions, temperature)  # [K]
            return PrototypeTargets(bottleneck, directions, center, temperature)
        if learn:
            mean = mean_logits(bottleneck.flatten(0, 1), directions)  # [K]
            self.patch_center.accumulate(mean, bottleneck.shape[0] * bottleneck.shape[1])
        return PrototypeTargets(bottleneck, directions, self.patch_center.center, temperature)

    def tick(self, momentum: float) -> None:
        """Moves the centres by what has been accumulated since the last tick."""
        self.cls_center.tick(momentum)
        self.patch_center.tick(momentum)
        if self.feature_norm is not None:
            self.feature_norm.tick(momentum)
