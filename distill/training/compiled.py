"""`train.compile`: the parts of a step that torch.compile makes faster, each compiled for itself.

Blocks, not the whole step: they are alike, so one is compiled and serves all; what happens around them (process
groups, sharding, logging) stays outside. A step's shapes never change, so nothing is compiled twice. Evaluations, whose
images have many sizes, run the blocks as they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn

from distill.objectives import cross_entropy

VARIANTS = 64  # of a block: one for every width, kind of pass and layout of a step; torch gives up after eight


def compile_parts(modules: Iterable[nn.Module], kind: str, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles every transformer block in `modules` and the softmaxes of the prototype loss.

    `none` leaves the blocks alone, and the softmaxes as they are written. To be called after copies of the modules were
    made (a copy of a compiled block would run the original) and before weights are sharded.
    """
    cross_entropy.use_compiled_softmaxes(kind == "blocks", backend)
    if kind == "none":
        return
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    blocks = {id(m): m for module in modules for m in module.modules() if isinstance(m, Block)}
    for block in blocks.values():
        block.forward = torch.compile(block.forward, backend=backend, dynamic=False)  # type: ignore[method-assign]


def as_written(kind: str) -> AbstractContextManager[Any]:
    """Inside, what `compile_parts` has compiled runs as it is written."""
    return nullcontext() if kind == "none" else torch.compiler.set_stance("force_eager")
