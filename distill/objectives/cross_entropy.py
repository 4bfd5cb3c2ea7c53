"""Cross-entropy between prototype distributions, without ever holding a tokens x prototypes matrix.

Supervising all tokens makes that matrix the largest tensor of a training step: 16,384 tokens x 32,768 prototypes are
2 GiB in fp32, several times over with the teacher's, the softmax and their gradients. Here a chunk of tokens at a
time goes through logits, both softmaxes, the loss and its gradient, and only the gradients `[T, d]` and `[K, d]` are
kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.objectives.precision import add_product, full, matmul, rough
from distill.objectives.prototypes import TokenTargets, chunk_rows
from distill.objectives.scratch import Scratch


class CrossEntropy(NamedTuple):
    total: Tensor  # scalar: the sum over tokens, with gradient
    tokens: Tensor  # [T] each token's cross-entropy, without gradient


def prototype_cross_entropy_plain(
    student: Tensor, directions: Tensor, targets: TokenTargets, temperature: float
) -> Tensor:
    """The plain reference: `[T]` values of `-sum_k p_k log softmax(x directions^T / temperature)_k`, with gradient.

    Arguments as in `prototype_cross_entropy`; holds several `[T, K]` matrices at once.
    """
    with torch.autocast(student.device.type, enabled=False):
        logits = full(student) @ full(directions).T / temperature  # [T, K]
        return -(targets.chunk(slice(None)) * logits.log_softmax(dim=-1)).sum(dim=-1)


def prototype_cross_entropy(
    student: Tensor,
    directions: Tensor,
    targets: TokenTargets,
    temperature: float,
    chunk: int | None = None,
) -> CrossEntropy:
    """The cross-entropy of T tokens, `-sum_k p_k log softmax(x directions^T / temperature)_k`, summed and one by one.

    `student` `[T, d]`: the student's bottleneck vectors. `directions` `[K, d]`: the student's prototypes. `targets`: T
    teacher distributions over K. `temperature`: the student's. `chunk`: tokens at a time (None: by memory).

    The gradient of the sum is computed along with it, in the same pass over the chunks; without gradients (under
    `no_grad`, or for inputs that need none) that half of the work is skipped. Softmaxes and sums are in fp32.
    """
    if chunk is None:
        chunk = chunk_rows(directions)
    if torch.is_grad_enabled() and (student.requires_grad or directions.requires_grad):
        return CrossEntropy(*_Fused.apply(student, directions, targets, temperature, chunk))
    with torch.no_grad():
        tokens, _, _ = _forward(student, directions, targets, temperature, chunk, gradients=False)
    return CrossEntropy(tokens.sum(), tokens)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        directions: Tensor,
        targets: TokenTargets,
        temperature: float,
        chunk: int,
    ) -> Any:
        tokens, grad_student, grad_directions = _forward(
            student, directions, targets, temperature, chunk, gradients=True
        )
        ctx.save_for_backward(grad_student, grad_directions)
        ctx.dtypes = (student.dtype, directions.dtype)
        ctx.mark_non_differentiable(tokens)
        return tokens.sum(), tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:  # grad: scalar
        grad_student, grad_directions = ctx.saved_tensors
        by_student, by_directions = torch.empty_like(grad_student), grad_directions.new_empty(grad_directions.shape)
        torch.mul(grad, grad_student, out=by_student)
        torch.mul(grad, grad_directions, out=by_directions)  # [K, d], laid out as the directions are
        return by_student.to(ctx.dtypes[0]), by_directions.to(ctx.dtypes[1]), None, None, None


def _softmaxes(logits: Tensor, target: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of `[t, K]` logits z and targets p: cross-entropies `[t]` and their slopes `softmax(z) - p`, `[t, K]`.

    Overwrites `logits`. `out`: where the slopes go.
    """
    probs = torch.softmax(logits, dim=-1, out=out)
    log_norm = logits.amax(dim=-1) - probs.amax(dim=-1).log()  # [t] logsumexp(z), from the largest entry
    return log_norm - logits.mul_(target).sum(dim=-1), probs.sub_(target)


_compiled_softmaxes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


def use_compiled_softmaxes(compiled: bool, backend: str | Callable[..., Any] = "inductor") -> None:
    """Whether `_softmaxes` goes through torch.compile, which makes one kernel of its passes over a chunk."""
    global _compiled_softmaxes
    _compiled_softmaxes = torch.compile(_softmaxes, backend=backend, dynamic=False) if compiled else None


def _run_softmaxes(logits: Tensor, target: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    if _compiled_softmaxes is not None:
        return _compiled_softmaxes(logits, target)
    return _softmaxes(logits, target, out=scratch.take("slope", logits.shape, like=logits))


def _forward(
    student: Tensor,
    directions: Tensor,
    targets: TokenTargets,
    temperature: float,
    chunk: int,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies `[T]` and, if asked, the gradients `[T, d]` and `[K, d]` of their sum (else empty).

    With z = x W^T / t, the gradient of `logsumexp(z) - p.z` by z is `softmax(z) - p`.
    """
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    scaled = student / temperature  # [T, d]
    tokens = torch.empty(len(student), dtype=dtype, device=student.device)
    grad_student = torch.empty(student.shape if gradients else (0, 0), dtype=dtype, device=student.device)
    grad_directions = torch.zeros(directions.T.shape if gradients else (0, 0), dtype=dtype, device=student.device)
    if gradients:
        rough_scaled, rough_directions = rough(full(scaled)), rough(full(directions))  # once, not chunk by chunk
    scratch = Scratch()
    for start in range(0, len(student), chunk):
        rows = slice(start, start + chunk)
        size = (len(scaled[rows]), len(directions))  # t, K
        target = targets.chunk(rows, scratch)  # [t, K]
        logits = matmul(scaled[rows], directions.T, out=scratch.take("logits", size, like=tokens))  # [t, K]
        with torch.autocast(student.device.type, enabled=False):  # it would round the products
            tokens[rows], slope = _run_softmaxes(logits, target, scratch)
            if gradients:
                if slope.dtype != rough_scaled.dtype:
                    slope = scratch.take("rough slope", size, like=rough_scaled).copy_(slope)
                grad_student[rows] = full(slope @ rough_directions) / temperature
                add_product(grad_directions, rough_scaled[rows].T, slope, scratch)
    return tokens, grad_student, grad_directions.T
