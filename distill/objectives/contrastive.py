"""Image-text contrast: every image against every caption of the global batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import unknown
from distill.objectives.distributed import all_gather_with_grad, rank
from distill.objectives.precision import full

LOSSES = ("softmax", "sigmoid")


def contrastive_loss(
    image: Tensor, text: Tensor, temperature: Tensor | float, loss: str = "softmax", bias: Tensor | None = None
) -> Tensor:
    """The contrastive loss of b image-text pairs on this rank against the B = ranks * b pairs of the global batch.

    `image`, `text`: float `[b, D]`, row i of one belongs to row i of the other; L2-normalised here, so s is the cosine.
    `temperature`: a positive scalar, learnable when it is a tensor with gradient. Computed in fp32.

    `softmax`, as CLIP (arXiv 2103.00020) and the paper's L_CLIP for one caption type: `-1/(2B) sum_k [log
    softmax_j(s(I_k, T_j)/t)_k + log softmax_j(s(T_k, I_j)/t)_k]`. `sigmoid`, as SigLIP (arXiv 2303.15343): `-1/B
    sum_i sum_j log sigmoid(z_ij (s(I_i, T_j)/t + bias))`, z = 1 for pairs and -1 otherwise; `bias` is its learnable
    scalar (None: 0).

    Returns this rank's share, a scalar: its mean over ranks is the global batch's loss, and so for the gradients.
    Raises UserError for another `loss`.
    """
    if loss not in LOSSES:
        raise unknown("objective.contrastive.loss", loss, LOSSES)
    with torch.autocast(image.device.type, enabled=False):
        image, text = F.normalize(full(image), dim=-1), F.normalize(full(text), dim=-1)  # [b, D]
        images = all_gather_with_grad(image) if loss == "softmax" else None  # [B, D]
        texts = all_gather_with_grad(text)  # [B, D]
        own = rank() * len(image) + torch.arange(len(image), device=image.device)  # [b] columns of the true pairs
        to_texts = image @ texts.T / temperature  # [b, B]
        if images is not None:
            to_images = text @ images.T / temperature  # [b, B]
            return (F.cross_entropy(to_texts, own) + F.cross_entropy(to_images, own)) / 2
        logits = to_texts if bias is None else to_texts + bias
        sign = -torch.ones_like(logits)
        sign[torch.arange(len(image), device=image.device), own] = 1
        return -F.logsigmoid(sign * logits).sum(dim=1).mean()
