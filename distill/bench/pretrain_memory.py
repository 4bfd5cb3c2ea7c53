"""Memory of the steps of `pretrain_step`: what a process takes above its weights.

Activations, gradients, optimiser state and buffers at the peak of a second step, when gradients and optimiser state are
there from the start. Weights do not count; those of the reference are more, as its teacher has a trunk of its own.
The first rows are ours as it comes; the last ones trade time for memory by `train.checkpointing: selective`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distill.bench.measure import peak_memory
from distill.bench.pretrain_step import SELECTIVE, compared, label, prepare
from distill.bench.rows import Row, less


def two_steps(kind: str, precision: str, quick: bool) -> Callable[[], Any]:
    """A call that takes two steps."""
    step = prepare(kind, precision, quick)
    return lambda: (step(), step())


def measure(quick: bool) -> list[Row]:
    precisions, pairs = compared()
    kinds = [(kind, p) for p in precisions for kind in ("ours", SELECTIVE, "lightly")]
    memory = {pair: peak_memory(two_steps, *pair, quick, fresh=not quick) for pair in kinds}
    return [
        less(label(m, t, kind), memory[kind, m], memory["lightly", t], "MiB at the peak")
        for kind in ("ours", SELECTIVE)
        for m, t in pairs
    ]
