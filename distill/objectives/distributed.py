"""The few collectives the objectives need. Without an initialised process group each is the identity.

The contract of every loss in this package: each rank returns its share, so that the *mean over ranks* of the values
is the loss of the global batch, and the *mean over ranks* of the gradients (what DistributedDataParallel computes) is
its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Number of ranks; 1 when torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 when torch.distributed is not initialised."""
    return dist.get_rank() if world_size() > 1 else 0


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over ranks, same shape on every rank; detached, `x` is left as it is."""
    total = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean of `x` over ranks, same shape on every rank; detached, `x` is left as it is."""
    return all_reduce_sum(x) / world_size()


def all_reduce_max(x: Tensor) -> Tensor:
    """The elementwise largest `x` over ranks, same shape on every rank; detached, `x` is left as it is."""
    largest = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def from_first_rank(x: Tensor) -> Tensor:
    """Rank 0's `x`, same shape on every rank; detached, `x` is left as it is."""
    first = x.detach().clone()
    if world_size() > 1:
        dist.broadcast(first, src=0)
    return first


def all_gather_with_grad(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order: `[b, ...]` to `[ranks * b, ...]`; b must be the same on every rank.

    Backward sends each rank the sum over ranks of the gradients of its rows, so that losses of other ranks that use
    these rows as negatives reach them. Averaging parameter gradients over ranks then gives the gradient of the mean
    loss.
    """
    return x if world_size() == 1 else _AllGather.apply(x)


def all_gather_objects(own: Any) -> list[Any]:
    """What every rank has (anything that can be pickled), in rank order."""
    if world_size() == 1:
        return [own]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, own)
    return everyone


@torch.no_grad()
def ring_shift(x: Tensor) -> Tensor:
    """Passes `x` to the next rank and returns the previous rank's, of the same shape; no gradient.

    After as many shifts as there are ranks everyone's is home again.
    """
    ranks = world_size()
    if ranks == 1:
        return x
    x = x.contiguous()
    received = torch.empty_like(x)
    meetings = [
        dist.P2POp(dist.isend, x, (rank() + 1) % ranks),
        dist.P2POp(dist.irecv, received, (rank() - 1) % ranks),
    ]
    for work in dist.batch_isend_irecv(meetings):
        work.wait()
    return received


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # grad: [ranks * b, ...]
        start = rank() * ctx.rows
        return all_reduce_sum(grad.contiguous())[start : start + ctx.rows]
