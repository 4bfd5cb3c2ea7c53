"""Image-text contrast: every image against every caption of the global batch.

Held whole, the captions of all ranks and the matrix of similarities grow with the global batch. Here the captions go
around the ranks in a ring instead, each block carrying what it collects on its way, and every meeting of a rank's
images with a block is computed in parts of bounded size: memory depends on this rank's batch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.errors import unknown
from distill.objectives.distributed import all_gather_with_grad, rank, ring_shift, world_size
from distill.objectives.precision import full

LOSSES = ("softmax", "sigmoid")
PART_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}  # of one part's matrix of similarities

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]  # by image, text, scale and bias


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    temperature: Tensor | float,
    loss: str = "softmax",
    bias: Tensor | None = None,
    rows: int | None = None,
) -> Tensor:
    """The contrastive loss of b image-text pairs on this rank against the B = ranks * b pairs of the global batch.

    `image`, `text`: float `[b, D]`, row i of one belongs to row i of the other; L2-normalised here, so s is the cosine.
    `temperature`: a positive scalar, learnable when it is a tensor with gradient. `rows`: images at a time (None: by
    memory). Computed in fp32.

    `softmax`, as CLIP (arXiv 2103.00020) and the paper's L_CLIP for one caption type: `-1/(2B) sum_k [log
    softmax_j(s(I_k, T_j)/t)_k + log softmax_j(s(T_k, I_j)/t)_k]`. `sigmoid`, as SigLIP (arXiv 2303.15343): `-1/B
    sum_i sum_j log sigmoid(z_ij (s(I_i, T_j)/t + bias))`, z = 1 for pairs and -1 otherwise; `bias` is its learnable
    scalar (None: 0).

    Returns this rank's share, a scalar: its mean over ranks is the global batch's loss, and so for the gradients. They
    are computed along with it, and are right when every rank weights its share alike. b must be the same on every rank.
    Raises UserError for another `loss`.
    """
    if loss not in LOSSES:
        raise unknown("objective.contrastive.loss", loss, LOSSES)
    with torch.autocast(image.device.type, enabled=False):
        image, text = F.normalize(full(image), dim=-1), F.normalize(full(text), dim=-1)  # [b, D]
        scale = 1 / torch.as_tensor(temperature, dtype=image.dtype, device=image.device)
        shift = image.new_zeros(()) if bias is None else bias.to(image.dtype)
        if rows is None:
            budget = PART_BYTES["cpu" if image.device.type == "cpu" else "cuda"]
            rows = max(1, budget // (image.element_size() * len(image)))
        inputs = (image, text, scale, shift)
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return _Fused.apply(*inputs, loss, rows)
        return _FORWARD[loss](*inputs, rows, gradients=False)[0]


def contrastive_loss_plain(
    image: Tensor, text: Tensor, temperature: Tensor | float, loss: str = "softmax", bias: Tensor | None = None
) -> Tensor:
    """The plain reference of `contrastive_loss`: every rank gathers all pairs and holds `[b, B]` matrices."""
    image, text = F.normalize(full(image), dim=-1), F.normalize(full(text), dim=-1)  # [b, D]
    images, texts = all_gather_with_grad(image), all_gather_with_grad(text)  # [B, D]
    own = rank() * len(image) + torch.arange(len(image), device=image.device)  # [b] columns of the true pairs
    to_texts = image @ texts.T / temperature  # [b, B]
    if loss == "softmax":
        return (F.cross_entropy(to_texts, own) + F.cross_entropy(text @ images.T / temperature, own)) / 2
    logits = to_texts if bias is None else to_texts + bias
    sign = 2 * F.one_hot(own, len(texts)).to(logits.dtype) - 1  # [b, B]
    return -F.logsigmoid(sign * logits).sum(dim=1).mean()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, loss: str, rows: int) -> Tensor:
        value, gradients = _FORWARD[loss](image, text, scale, bias, rows, gradients=True)
        assert gradients is not None
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # grad: scalar
        return *(grad * own for own in ctx.saved_tensors), None, None


@torch.no_grad()
def _softmax(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, rows: int, gradients: bool
) -> tuple[Tensor, Gradients | None]:
    """This rank's share and, if asked, its gradients. `image`, `text` `[b, D]` of length 1.

    One round collects the normaliser of every caption, log sum_i exp(z_ij) over the images of all ranks, and of every
    own image. With both, the slope of the loss by z_ij is known, `(softmax by row + softmax by column - 2 delta_ij) /
    2b`, and a second round brings every caption its gradient.
    """
    b, width = text.shape
    over_texts = image.new_full((b,), -torch.inf)
    block = torch.cat([text, text.new_full((b, 1), -torch.inf)], dim=1)  # [b, D + 1] captions, their normalisers
    for _ in range(world_size()):
        for part in _parts(b, rows):
            logits = (scale * image[part]) @ block[:, :width].T  # [r, b]
            over_texts[part] = torch.logaddexp(over_texts[part], logits.logsumexp(dim=1))
            block[:, width] = torch.logaddexp(block[:, width], logits.logsumexp(dim=0))
        block = ring_shift(block)
    over_images = block[:, width]  # [b], home again
    value = (over_texts + over_images).mean() / 2 - scale * torch.linalg.vecdot(image, text).mean()
    if not gradients:
        return value, None

    grad_image, grad_scale = torch.zeros_like(image), torch.zeros_like(scale)
    block = torch.cat([block, torch.zeros_like(text)], dim=1)  # [b, D + 1 + D]: and their gradients
    for hop in range(world_size()):
        texts, columns, grad_texts = block.split([width, 1, width], dim=1)
        for part in _parts(b, rows):
            cosines = image[part] @ texts.T  # [r, b]
            logits = scale * cosines
            slope = (logits - over_texts[part, None]).exp_() + (logits - columns.T).exp_()
            if hop == 0:
                slope.diagonal(part.start).sub_(2)
            slope /= 2 * b
            grad_scale += (slope * cosines).sum()
            grad_image[part] += slope @ texts
            grad_texts += slope.T @ image[part]
        block = ring_shift(block)
    return value, (scale * grad_image, scale * block[:, width + 1 :], grad_scale, torch.zeros_like(bias))


@torch.no_grad()
def _sigmoid(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, rows: int, gradients: bool
) -> tuple[Tensor, Gradients | None]:
    """As `_softmax`; pairs do not compete, so that one round does both: the slope by z_ij is `-z sigmoid(-z l) / b`."""
    b, width = text.shape
    value, grad_scale, grad_bias = (torch.zeros_like(scale) for _ in range(3))
    grad_image = torch.zeros_like(image)
    block = torch.cat([text, torch.zeros_like(text)], dim=1) if gradients else text  # [b, 2 D]: and their gradients
    for hop in range(world_size()):
        texts, grad_texts = block[:, :width], block[:, width:]
        for part in _parts(b, rows):
            cosines = image[part] @ texts.T  # [r, b]
            logits = scale * cosines + bias
            if hop == 0:
                logits.diagonal(part.start).neg_()  # now -z l throughout
            value += F.softplus(logits).sum() / b
            if gradients:
                slope = logits.sigmoid_() / b
                if hop == 0:
                    slope.diagonal(part.start).neg_()
                grad_scale += (slope * cosines).sum()
                grad_bias += slope.sum()
                grad_image[part] += slope @ texts
                grad_texts += slope.T @ image[part]
        block = ring_shift(block)
    return value, (scale * grad_image, scale * block[:, width:], grad_scale, grad_bias) if gradients else None


def _parts(count: int, rows: int) -> Iterator[slice]:
    """`count` rows in slices of `rows` at most."""
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


_FORWARD = {"softmax": _softmax, "sigmoid": _sigmoid}
