"""Image-text contrast over a large batch, values and gradients.

Ours goes through the matrix of similarities in parts and computes the gradient along with the value; the reference is
CLIP's loss under autograd, which holds several whole matrices. One CPU thread, one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from distill.bench.measure import interleave, peak_memory, use_threads
from distill.bench.rows import Row, less
from distill.objectives.contrastive import contrastive_loss, contrastive_loss_plain

FULL = {"pairs": 4096, "width": 768}
QUICK = {"pairs": 32, "width": 16}


def prepare(kind: str, pairs: int, width: int) -> Callable[[], Any]:
    """A call that computes loss and gradients: `kind` parts or plain."""
    torch.manual_seed(0)
    image, text = (torch.randn(pairs, width).requires_grad_() for _ in range(2))
    temperature = torch.tensor(0.07, requires_grad=True)
    loss = contrastive_loss if kind == "parts" else contrastive_loss_plain
    return lambda: torch.autograd.grad(loss(image, text, temperature), (image, text, temperature))


def measure(quick: bool) -> list[Row]:
    size = QUICK if quick else FULL
    what = f"{size['pairs']:,} pairs, {size['width']} wide"
    with use_threads(1):
        time = interleave({kind: prepare(kind, **size) for kind in ("parts", "plain")}, rounds=1 if quick else 5)
    memory = {kind: peak_memory(prepare, kind, *size.values(), fresh=not quick) for kind in ("parts", "plain")}
    return [
        less(what, time["parts"].wall, time["plain"].wall, "s"),
        less(what, time["parts"].cpu, time["plain"].cpu, "s of CPU"),
        less(what, memory["parts"], memory["plain"], "MiB above the inputs"),
    ]
