"""`train.compile`: the parts of a step that torch.compile makes faster, each compiled for itself.

Blocks, not the whole step: they are alike, so one is compiled and serves all; what happens around them (process
groups, sharding, logging) stays outside. A step's shapes never change, so nothing is compiled twice.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.models.vision_transformer import Block
from torch import nn

from distill.objectives import cross_entropy


def compile_parts(modules: Iterable[nn.Module], kind: str, backend: str = "inductor") -> None:
    """Compiles every transformer block in `modules` and the softmaxes of the prototype loss.

    `none` leaves the blocks alone, and the softmaxes as they are written. To be called after copies of the modules were
    made (a copy of a compiled block would run the original) and before weights are sharded.
    """
    cross_entropy.use_compiled_softmaxes(kind == "blocks", backend)
    if kind == "none":
        return
    blocks = {id(m): m for module in modules for m in module.modules() if isinstance(m, Block)}
    for block in blocks.values():
        block.forward = torch.compile(block.forward, backend=backend, dynamic=False)  # type: ignore[method-assign]
