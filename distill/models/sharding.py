"""Modules and tensors spread over ranks (PyTorch's FSDP2): a rank holds a slice of each weight between its uses."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor, nn


def shard(module: nn.Module, mesh: Any, keep_root: bool) -> nn.Module:
    """Spreads the weights of `module` over the ranks of `mesh`, in place, and returns it.

    Every transformer block is gathered for its own forward and backward pass alone. What is left (embeddings, norms,
    heads) is gathered when `module` is called; `keep_root`: and stays until the backward pass is over, which is less
    traffic, and the only way for weights that are used again before it. Its parameters are replaced by new ones, so
    optimisers are built afterwards.
    """
    from torch.distributed.fsdp import fully_shard

    for block in [m for m in module.modules() if isinstance(m, Block)]:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=not keep_root)
    return module


def is_sharded(value: Any) -> bool:
    """Whether `value` is a tensor that is spread over ranks (a DTensor; asked so as not to import them)."""
    return hasattr(value, "full_tensor")


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor on every rank. Collective for a sharded one, the identity for others."""
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]


def placed_like(value: Tensor, like: Any) -> Tensor:
    """`value` spread over ranks as `like` is; both may be sharded or whole. Collective when `value` is sharded.

    A whole `value` must be the same on every rank: each keeps its slice.
    """
    if not is_sharded(like):
        return whole(value)
    if is_sharded(value):
        return value.redistribute(like.device_mesh, like.placements)  # type: ignore[attr-defined]
    from torch.distributed.tensor import distribute_tensor

    device = like.to_local().device
    return distribute_tensor(value.to(device), like.device_mesh, like.placements, src_data_rank=None)


def here(value: Any) -> Tensor:
    """The slice of a tensor that this rank holds; all of it when it is not sharded."""
    return value.to_local() if is_sharded(value) else value
