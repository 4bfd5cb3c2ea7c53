"""Image-text contrast over a large batch, values and gradients.

Ours goes through the matrix of similarities in parts and computes the gradient along with the value; the reference is
CLIP's loss under autograd: one matrix of logits, read by rows and by columns, of which several copies are held. It
needs three matrix products, ours four. One CPU thread, one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.bench.measure import interleave, peak_memory, use_threads
from distill.bench.rows import Row, less
from distill.objectives.contrastive import contrastive_loss

FULL = {"pairs": 4096, "width": 768}
QUICK = {"pairs": 32, "width": 16}


def clip_loss(image: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
    """The plain reference: CLIP's loss (arXiv 2103.00020, figure 3) of pairs `[B, D]` in one process."""
    logits = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T / temperature  # [B, B]
    labels = torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def prepare(kind: str, pairs: int, width: int) -> Callable[[], Any]:
    """A call that computes loss and gradients: `kind` parts or plain."""
    torch.manual_seed(0)
    image, text = (torch.randn(pairs, width).requires_grad_() for _ in range(2))
    temperature = torch.tensor(0.07, requires_grad=True)
    loss = contrastive_loss if kind == "parts" else clip_loss
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
