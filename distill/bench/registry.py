"""The benchmarks there are. A new one is a file with `measure(quick) -> list[Row]`, and a line here.

Its docstring says what is compared; it goes into the report, with a picture where the file has `draw(rows, path)`.
`quick` asks for the smallest sizes that still run all of the code, in a second or two: that is what the tests run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from distill.bench.rows import Row
from distill.errors import unknown

BENCHMARKS: dict[str, tuple[str, str]] = {  # name: (module, one line)
    "prototype_loss": (
        "distill.bench.prototype_loss",
        "cross-entropy over prototypes, in chunks or whole",
    ),
    "attention": ("distill.bench.attention", "self-attention by matrix products or fused, by length"),
    "tiny_step": ("distill.bench.tiny_step", "a step of pretrain/scenes_tiny, packed or pass by pass"),
    "pretrain_step": ("distill.bench.pretrain_step", "a whole pretraining step, against one from lightly's blocks"),
    "pretrain_memory": ("distill.bench.pretrain_memory", "memory of that step, and of the one from lightly's blocks"),
    "curves": ("distill.bench.curves", "cost of a step against batch, patches, prototypes and students"),
    "cuda": ("distill.bench.cuda", "full-size steps and the prototype loss on a GPU"),
    "kept_targets": ("distill.bench.kept_targets", "a frozen teacher's targets, read from disk or by a pass"),
    "plan": ("distill.bench.plan", "what distill plan says of a step, beside what is measured"),
    "data": ("distill.bench.data", "from a JPEG to its crops; procedural scenes"),
    "zeroshot_seg": (
        "distill.bench.zeroshot_seg",
        "zero-shot segmentation, as the published notebook or as here",
    ),
    "contrast": ("distill.bench.contrast", "image-text contrast over a large batch, in parts or whole"),
    "checkpointing": ("distill.bench.checkpointing", "activation checkpointing: memory saved, time spent"),
    "teacher_heads": (
        "distill.bench.teacher_heads",
        "a distillation step by where the teacher's targets come from",
    ),
}


def find_benchmarks(names: Sequence[str]) -> list[str]:
    """The names asked for, or all when none is; UserError with the nearest name for one that does not exist."""
    for name in names:
        if name not in BENCHMARKS:
            raise unknown("benchmark", name, BENCHMARKS)
    return list(dict.fromkeys(names)) or list(BENCHMARKS)


def module_of(name: str) -> ModuleType:
    """The benchmark's module, imported now."""
    return import_module(BENCHMARKS[name][0])


def measure_of(name: str) -> Callable[[bool], list[Row]]:
    """The benchmark's function."""
    return module_of(name).measure
