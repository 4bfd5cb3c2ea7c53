"""CLS self-distillation: the local crops' CLS-1 must match the teacher's view of the whole image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError
from distill.objectives.patch_distillation import feature_distance
from distill.objectives.precision import full


def cls_distillation_loss(student_logits: Tensor, teacher_probs: Tensor, temperature: float) -> Tensor:
    """Cross-entropy from the teacher's global crop to the student's local crops, L_DINO (Eq. 1 of the paper).

    `-1/(B M) sum_b sum_m p_b^T log softmax(z_bm / t)`: the paper writes a sum over the M local crops; this is the
    mean over crops and images, which makes the paper's weight alpha = 1 independent of M.

    `student_logits`: `[B, M, K]` prototype logits of the local crops. `teacher_probs`: `[B, K]`, centred and sharpened,
    rows sum to 1; no gradient flows to them. `temperature`: the student's, above 0. Returns a scalar, computed in fp32.
    With several ranks: this rank's share, equal numbers of images on every rank. Raises UserError when M is 0.
    """
    _need_crops(student_logits)
    with torch.autocast(student_logits.device.type, enabled=False):
        log_probs = F.log_softmax(full(student_logits) / temperature, dim=-1)  # [B, M, K]
        agreement = torch.einsum("bmk,bk->bm", log_probs, teacher_probs.detach().to(log_probs.dtype))
        return -agreement.mean()


def feature_cls_loss(student: Tensor, target: Tensor) -> Tensor:
    """Regression of the teacher's global CLS-1 by the local crops': mean of `feature_distance` over crops and images.

    `student` `[B, M, D]`: a linear projection of the local crops' CLS-1. `target` `[B, D]`: the teacher's, normalised.
    Returns a scalar in fp32. With several ranks and with M = 0 as above.
    """
    _need_crops(student)
    return feature_distance(student, target[:, None].expand_as(student)).mean()


def _need_crops(student: Tensor) -> None:
    if student.shape[1] == 0:
        raise UserError(
            "CLS distillation has no local crops. Set views.locals to 1 or more, or objective.cls.weight to 0."
        )
