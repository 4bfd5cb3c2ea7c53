"""What a teacher says about a batch, and the averaged heads and centres it says it with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.config.schema import ObjectiveConfig
from distill.models.heads import PrototypeHead
from distill.models.joint_heads import Heads
from distill.models.vision import ImageOutput
from distill.objectives.patch_distillation import FeatureNorm
from distill.objectives.phi_s import PhiSNorm
from distill.objectives.prototypes import Center, PrototypeTargets, ReadyTargets, mean_logits, sinkhorn, sinkhorn_center
from teachers.heads.fitted import FittedHead, FittedHeads


@dataclass
class FeatureTargets:
    """Normalised teacher features to regress: of patches `[B, N, D_teacher]`, or of CLS-1 `[B, D_teacher]`."""

    features: Tensor


PatchTargets = PrototypeTargets | ReadyTargets | FeatureTargets


@dataclass
class Targets:
    """Teacher targets of one batch, without gradient.

    `cls`: distribution of the teacher's global CLS-1 over prototypes `[B, K]`, or its features, or None when the CLS
    loss is off.
    `patch`: one target a patch of the clean global view, or None when the patch loss is off.
    """

    cls: Tensor | FeatureTargets | None
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
    patches is taken over all patches, whichever tokens are supervised. Fitted heads need no balancing: their own
    temperature takes the recipe's place. `heads` is None where all targets are features.
    """

    feature_norm: FeatureNorm | PhiSNorm | None
    cls_norm: FeatureNorm | PhiSNorm | None

    def __init__(
        self,
        heads: Heads | FittedHeads | None,
        prototypes: int,
        feature_width: int | None = None,
        cls_width: int | None = None,
    ):
        super().__init__()
        self.heads = heads
        self.cls_center = Center(prototypes)
        self.patch_center = Center(prototypes)
        self.with_norms(feature_width, cls_width)

    def with_norms(self, feature_width: int | None, cls_width: int | None, kind: str = "standard") -> TargetHeads:
        """The same heads, with fresh feature statistics (`objective.feature_norm`) of these widths (None: without)."""
        norm = PhiSNorm if kind == "phi_s" else FeatureNorm
        self.feature_norm = None if feature_width is None else norm(feature_width)
        self.cls_norm = None if cls_width is None else norm(cls_width)
        return self

    @torch.no_grad()
    def targets(
        self,
        output: ImageOutput,
        objective: ObjectiveConfig,
        patch_temperature: float,
        learn: bool = True,
        centers: bool = True,
    ) -> Targets:
        """Targets from the teacher's clean output: cls `[B, C, D]`, patches `[B, N, D]`.

        Args:
            learn: whether this batch counts towards centres and feature statistics (False when only looking).
            centers: whether it counts towards the centres (False where they belong to frozen heads).
        """
        return self.targets_of(self.embed(output, objective), objective, patch_temperature, learn, centers)

    @torch.no_grad()
    def embed(self, output: ImageOutput, objective: ObjectiveConfig) -> Embedded:
        """What `targets_of` needs of the teacher's clean output."""
        cls, patches = None, None
        if objective.cls.weight > 0:
            cls = output.cls[:, 0]
            cls = cls if objective.cls.target == "features" else self._head("cls").bottleneck(cls)
        if objective.patch.weight > 0:
            patches = output.patches
            patches = patches if objective.patch.target == "features" else self._head("patch").bottleneck(patches)
        return Embedded(cls, patches)

    def embedded_widths(self, objective: ObjectiveConfig) -> tuple[int | None, int | None]:
        """Channels of `Embedded.cls` and of `Embedded.patches`; None where the loss is off."""
        cls = patch = None
        if objective.cls.weight > 0:
            features = objective.cls.target == "features"
            cls = _width(self.cls_norm) if features else self._head("cls").directions().shape[1]
        if objective.patch.weight > 0:
            features = objective.patch.target == "features"
            patch = _width(self.feature_norm) if features else self._head("patch").directions().shape[1]
        return cls, patch

    @torch.no_grad()
    def targets_of(
        self,
        embedded: Embedded,
        objective: ObjectiveConfig,
        patch_temperature: float,
        learn: bool = True,
        centers: bool = True,
    ) -> Targets:
        """Targets from what `embed` gave, now or earlier; arguments as of `targets`."""
        cls: Tensor | FeatureTargets | None = None
        patch: PatchTargets | None = None
        if embedded.cls is not None and objective.cls.target == "features":
            cls = _features(self.cls_norm, embedded.cls, learn)
        elif embedded.cls is not None:
            cls = self._cls(embedded.cls, objective, learn and centers)
        if embedded.patches is not None and objective.patch.target == "features":
            patch = _features(self.feature_norm, embedded.patches, learn)
        elif embedded.patches is not None:
            patch = self._patch(embedded.patches, objective, patch_temperature, learn and centers)
        return Targets(cls=cls, patch=patch)

    def _head(self, kind: str) -> PrototypeHead | FittedHead:
        assert self.heads is not None, "heads are needed for prototype targets"
        return self.heads.cls if kind == "cls" else self.heads.patch

    def _cls(self, bottleneck: Tensor, objective: ObjectiveConfig, learn: bool) -> Tensor:
        head = self._head("cls")
        directions = head.directions()  # [K, d]
        with torch.autocast(bottleneck.device.type, enabled=False):  # it would round the cosines
            logits = bottleneck.float() @ directions.float().T  # [B, K]
        if isinstance(head, FittedHead):
            return torch.softmax(logits / head.temperature, dim=-1)
        if learn:
            self.cls_center.accumulate(logits.mean(0), len(logits))
        if objective.cls.balance == "sinkhorn":
            return sinkhorn(logits, objective.cls.teacher_temperature)
        return self.cls_center.probs(logits, objective.cls.teacher_temperature)

    def _patch(self, patches: Tensor, objective: ObjectiveConfig, temperature: float, learn: bool) -> PatchTargets:
        head = self._head("patch")
        bottleneck, directions = patches, head.directions()  # [B, N, d], [K, d]
        if isinstance(head, FittedHead):
            return PrototypeTargets(bottleneck, directions, self.patch_center.center, head.temperature)
        if learn:  # with Sinkhorn too: these heads may teach another run, balanced by their centre
            mean = mean_logits(bottleneck.flatten(0, 1), directions)  # [K]
            self.patch_center.accumulate(mean, bottleneck.shape[0] * bottleneck.shape[1])
        if objective.patch.balance == "sinkhorn":
            center = sinkhorn_center(bottleneck, directions, temperature)  # [K]
            return PrototypeTargets(bottleneck, directions, center, temperature)
        return PrototypeTargets(bottleneck, directions, self.patch_center.center, temperature)

    def tick(self, momentum: float) -> None:
        """Moves the centres by what has been accumulated since the last tick."""
        self.cls_center.tick(momentum)
        self.patch_center.tick(momentum)
        self.tick_norms(momentum)

    def tick_norms(self, momentum: float) -> None:
        """Moves the running feature statistics alone."""
        for norm in (self.feature_norm, self.cls_norm):
            if isinstance(norm, FeatureNorm):
                norm.tick(momentum)


def _width(norm: FeatureNorm | PhiSNorm | None) -> int:
    assert norm is not None
    return len(norm.mean)


def _features(norm: FeatureNorm | PhiSNorm | None, tokens: Tensor, learn: bool) -> FeatureTargets:
    """Tokens `[..., D]` as targets to regress; `learn` lets them count towards running statistics."""
    assert norm is not None
    if learn and isinstance(norm, FeatureNorm):
        norm.accumulate(tokens)
    return FeatureTargets(norm(tokens))
