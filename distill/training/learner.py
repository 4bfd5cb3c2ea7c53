"""A model being trained, and the losses that tie it to text and to a teacher's targets.

Pretraining and distillation are the same three losses; only where the targets come from differs. One `Learner` is one
student; a co-trained teacher is a `Learner` too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.config.schema import ObjectiveConfig
from distill.models.joint_heads import Heads
from distill.models.pair import ImageTextModel
from distill.models.vision import ImageOutput, Views
from distill.objectives.cls_distillation import cls_distillation_loss, feature_cls_loss
from distill.objectives.patch_distillation import PatchLoss, feature_patch_loss, prototype_patch_loss
from distill.training.negatives import Features, Slopes
from distill.views.batch import Batch
from teachers.targets import FeatureTargets, PatchTargets, Targets


@dataclass
class Pixels:
    """A batch's pixels on the device, converted once: `images` `[B, 3, G, G]`, `locals` `[B*M, 3, h, h]`, in [0, 1]."""

    images: Tensor
    locals: Tensor
    mask: Tensor  # bool [B, N]
    masked: int | None  # how many patches it hides, where known

    @classmethod
    def of(cls, batch: Batch) -> Pixels:
        return cls(batch.images(), batch.locals_(), batch.mask, batch.masked)


@dataclass
class Losses:
    """Weighted sum to minimise and its unweighted, detached parts by name."""

    total: Tensor
    parts: dict[str, Tensor]


class Learner(nn.Module):
    """An image-text model with its heads.

    Args:
        model: image tower, text tower, temperature.
        heads: prototype heads h_s (and the feature projections where features are regressed).
        objective: weights and temperatures.
        tokens: supervised tokens, `masked | visible | all`.
        corrupts: whether the student's view is masked at all (mask ratio > 0).
    """

    def __init__(
        self, model: ImageTextModel, heads: Heads | None, objective: ObjectiveConfig, tokens: str, corrupts: bool
    ):
        super().__init__()
        self.model = model
        self.heads = heads
        self.objective = objective
        self.tokens = tokens
        self.corrupts = corrupts
        # SigLIP's bias on the logits [1]; its published initial value.
        self.logit_bias = nn.Parameter(torch.tensor([-10.0])) if objective.contrastive.loss == "sigmoid" else None

    def clean(self, images: Tensor) -> ImageOutput:
        """The unmasked global view, cls `[B, C, D]`, patches `[B, N, D]`: for the contrast and, shared, for targets."""
        return self.model.image(images)

    def views(self, pixels: Pixels) -> Views:
        """The views that the losses need, in one pass where the trunk can; else the clean one, and the others later."""
        image, objective = self.model.image, self.objective
        if not image.packs:
            return Views(self.clean(pixels.images), None, None)
        mask = pixels.mask if objective.patch.weight > 0 and self.corrupts else None
        return image.views(pixels.images, mask, pixels.locals if objective.cls.weight > 0 else None)

    def features(self, batch: Batch, clean: ImageOutput) -> Features | None:
        """What the contrast sees, None when it is off."""
        if self.objective.contrastive.weight == 0:
            return None
        text = self.model.text.slots(batch.tokens, batch.valid)  # [b, C, D]
        bias = None if self.logit_bias is None else self.logit_bias.squeeze()
        return Features(clean.cls, text, self.model.temperature, bias)

    def losses(
        self,
        pixels: Pixels,
        views: Views,
        features: Features | None,
        targets: Targets,
        slopes: Slopes | None = None,
    ) -> Losses:
        """L = w_c L_contrastive + alpha L_cls + beta L_patch (TIPSv2 appendix A.9).

        `slopes`: the contrast when it is taken over several micro-batches (None: over this one).
        """
        parts: dict[str, Tensor] = {}
        total = views.clean.cls.new_zeros(())
        objective = self.objective
        if features is not None:
            kind = objective.contrastive.loss
            loss = features.loss(kind) if slopes is None else slopes.through(features)
            parts["contrastive"] = loss.detach()
            total = total + objective.contrastive.weight * loss
        if targets.cls is not None:
            loss = self._cls(pixels, views, targets.cls)
            parts["cls"] = loss.detach()
            total = total + objective.cls.weight * loss
        if targets.patch is not None:
            patch = self._patch(pixels, views, targets.patch)
            parts |= {"patch": patch.total.detach(), "patch_masked": patch.masked, "patch_visible": patch.visible}
            total = total + objective.patch.weight * patch.total
        return Losses(total, parts)

    def _cls(self, pixels: Pixels, views: Views, target: Tensor | FeatureTargets) -> Tensor:
        """Local crops' CLS-1 to the teacher's global CLS-1 (Eq. 1)."""
        assert self.heads is not None
        cls = (views.crops or self.model.image(pixels.locals)).cls[:, 0]  # [B*M, D]
        if isinstance(target, FeatureTargets):
            guess = self.heads.predict_cls_features(cls)  # [B*M, D_teacher]
            return feature_cls_loss(guess.unflatten(0, (len(target.features), -1)), target.features)
        logits = self.heads.cls(cls).unflatten(0, (len(target), -1))  # [B, M, K]
        return cls_distillation_loss(logits, target, self.objective.cls.student_temperature)

    def _patch(self, pixels: Pixels, views: Views, targets: PatchTargets) -> PatchLoss:
        """Corrupted view's patches to the teacher's clean ones (Eq. 2, 3); with no mask the clean pass serves."""
        assert self.heads is not None
        view = views.clean
        if self.corrupts:
            view = views.masked or self.model.image(pixels.images, pixels.mask)
        if isinstance(targets, FeatureTargets):
            guess = self.heads.predict_features(view.patches)
            return feature_patch_loss(guess, targets.features, pixels.mask, self.tokens, pixels.masked)
        head = self.heads.patch
        return prototype_patch_loss(
            head.bottleneck(view.patches),
            head.directions(),
            targets,
            pixels.mask,
            self.tokens,
            self.objective.patch.student_temperature,
            masked=pixels.masked,
        )


def freeze_unused(learner: Learner) -> list[str]:
    """Stops gradients of parameters that no loss reaches; returns their names (gradient sync needs every one used)."""
    objective = learner.objective
    unused: list[str] = []
    if objective.contrastive.weight == 0:
        unused += [f"model.text.{n}" for n, _ in learner.model.text.named_parameters()] + ["model.log_temperature"]
        if objective.contrastive.loss == "sigmoid":
            unused.append("logit_bias")
    if objective.patch.weight == 0 or not learner.corrupts:
        unused += [n for n, _ in learner.named_parameters() if n.split(".")[-1] == "mask_token"]
    unused += _unused_heads(learner)
    names = set(unused)
    for name, parameter in learner.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    return sorted(names)


def _unused_heads(learner: Learner) -> list[str]:
    """Parameters of prototype heads whose losses are off or regress features instead."""
    heads, objective = learner.heads, learner.objective
    if heads is None:
        return []
    on_cls, on_patches = (p.weight > 0 and p.target != "features" for p in (objective.cls, objective.patch))
    unused = []
    if not on_cls and (heads.own_patch is not None or not on_patches):
        unused += [f"heads.shared.{n}" for n, _ in heads.shared.named_parameters()]
    if heads.own_patch is not None and not on_patches:
        unused += [f"heads.own_patch.{n}" for n, _ in heads.own_patch.named_parameters()]
    return unused
