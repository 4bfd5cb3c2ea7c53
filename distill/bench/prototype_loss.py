"""Cross-entropy of all tokens over prototypes, values and gradients.

Ours goes through the tokens in chunks and computes the gradient along with the value; the reference is the plain
expression under autograd, which holds several tokens x prototypes matrices. Both make the teacher's targets. One CPU
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from distill.bench.measure import interleave, peak_memory, use_threads
from distill.bench.rows import Row, less
from distill.objectives.cross_entropy import prototype_cross_entropy, prototype_cross_entropy_plain
from distill.objectives.prototypes import PrototypeTargets

FULL = {"tokens": 4096, "width": 256, "prototypes": 32768}
QUICK = {"tokens": 64, "width": 16, "prototypes": 256}


def prepare(kind: str, tokens: int, width: int, prototypes: int, *, device: str = "cpu") -> Callable[[], Any]:
    """A call that computes loss and gradients: `kind` chunked or plain."""
    torch.manual_seed(0)
    unit = lambda *shape: F.normalize(torch.randn(*shape, device=device), dim=-1)  # noqa: E731
    student, directions = unit(tokens, width).requires_grad_(), unit(prototypes, width).requires_grad_()
    targets = PrototypeTargets(
        unit(tokens, width), unit(prototypes, width), torch.zeros(prototypes, device=device), 0.07
    )

    def chunked() -> Any:
        return prototype_cross_entropy(student, directions, targets, 0.1).total

    def whole() -> Any:
        return prototype_cross_entropy_plain(student, directions, targets, 0.1).sum()

    loss = chunked if kind == "chunked" else whole
    return lambda: torch.autograd.grad(loss(), (student, directions))


def measure(quick: bool) -> list[Row]:
    size = QUICK if quick else FULL
    what = f"{size['tokens']:,} tokens, {size['width']} wide, {size['prototypes']:,} prototypes"
    with use_threads(1):
        time = interleave(
            {kind: prepare(kind, *size.values()) for kind in ("chunked", "plain")}, rounds=1 if quick else 5
        )
    memory = {kind: peak_memory(prepare, kind, *size.values(), fresh=not quick) for kind in ("chunked", "plain")}
    return [
        less(what, time["chunked"].wall, time["plain"].wall, "s"),
        less(what, time["chunked"].cpu, time["plain"].cpu, "s of CPU"),
        less(what, memory["chunked"], memory["plain"], "MiB above the inputs"),
    ]
