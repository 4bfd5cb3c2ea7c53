"""A full pretraining step of TIPSv2: ViT-S/14 at 224 px, 1 + 6 crops, 75 % masked, 32,768 prototypes, batch 8.

Ours is the real loop's step: head-only EMA, one packed pass, the prototype loss in chunks. The reference is the same
step from lightly's public blocks (see `distill/bench/lightly_step.py`): a momentum copy of trunk and head, a pass for
every view, whole matrices of prototype logits. Both start from the same weights and see the same batch, and their
losses are checked to be the same before anything is timed. The first rows compare like with like, both in fp32 or both
under bf16 autocast; then what `train.precision: auto` picks here meets the plain fp32 step, and the last rows say what
`train.checkpointing: selective`, which needs less memory, costs. The operations of both say what there is to gain where
matrix products take most of the time. One CPU thread.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from distill.bench import ours
from distill.bench.lightly_step import LightlyStep, has_lightly, prepare_step
from distill.bench.measure import cpu_precisions, interleave, operations, use_threads
from distill.bench.rows import Row, less, more, not_measured
from distill.config.schema import Config

SETTINGS: dict[str, Any] = {
    "students.0.arch": "S/14",
    "vision.position_grid": 16,
    "text.tokenizer": "clip",
    "data.shards": "unused",
    "train.batch": 8,
    "train.devices": 1,
    "train.accelerator": "cpu",
}
SMALL: dict[str, Any] = {
    "students.0.arch": "tiny/14",
    "students.0.depth": 1,
    "vision.position_grid": 4,
    "views.global_size": 56,
    "views.local_size": 28,
    "text.tokenizer": "words",
    "text.layers": 1,
    "heads.prototypes": 64,
    "heads.hidden": 32,
    "heads.bottleneck": 16,
    "train.batch": 2,
}
AGREE = 1e-2  # relative; lightly resizes the positions of local crops bicubically, we bilinearly


CPU_STEP = "s of CPU a step"
SELECTIVE = "ours, selective"  # ours with train.checkpointing=selective


def config(precision: str, quick: bool, checkpointing: str = "none") -> Config:
    """The recipe of the step."""
    asked = {"train.precision": precision, "train.checkpointing": checkpointing}
    return ours.configure("pretrain/tipsv2_l14", SETTINGS | (SMALL if quick else {}) | asked)


def prepare(kind: str, precision: str, quick: bool) -> Callable[[], Any]:
    """A call that takes one step, `kind` ours, `SELECTIVE` or lightly; gives its loss."""
    cfg = config(precision, quick, "selective" if kind == SELECTIVE else "none")
    state = ours.start(cfg)
    learner = state.distiller.student("student")
    batch = ours.fake_batch(cfg, learner.model.tokenizer.vocabulary)
    if kind == "lightly":
        return prepare_step(LightlyStep(cfg, learner), batch)
    return lambda: ours.one_step(state, batch)


def compared() -> tuple[list[str], list[tuple[str, str]]]:
    """The precisions that make sense on this CPU, and which of ours meets which of lightly's."""
    precisions = cpu_precisions()
    return precisions, [(p, p) for p in precisions] + [(p, "fp32") for p in precisions[1:]]


def label(mine: str, theirs: str, kind: str = "ours") -> str:
    if kind == SELECTIVE:
        return f"ours in {mine} with train.checkpointing=selective, lightly in {theirs}"
    return f"both in {mine}" if mine == theirs else f"ours in {mine}, lightly in {theirs}"


def measure(quick: bool) -> list[Row]:
    precisions, pairs = compared()
    if not has_lightly():
        whats = [label(*pair, kind) for kind, pair in product(("ours", SELECTIVE), pairs)]
        why = "lightly is not installed"
        return [not_measured(what, unit, why) for what, unit in product(whats, ("steps/s", CPU_STEP))]
    with use_threads(1):
        steps = {(kind, p): prepare(kind, p, quick) for p in precisions for kind in ("ours", SELECTIVE, "lightly")}
        check_agreement(float(steps["ours", "fp32"]()), float(steps["lightly", "fp32"]()))
        needed = {kind: operations(steps[kind, "fp32"]) / 1e9 for kind in ("ours", "lightly")}
        time = interleave(steps, rounds=1 if quick else 3)
    rows: list[Row] = []
    for kind, (mine, theirs) in product(("ours", SELECTIVE), pairs):
        what, a, b = label(mine, theirs, kind), time[kind, mine], time["lightly", theirs]
        rows += [more(what, 1 / a.wall, 1 / b.wall, "steps/s"), less(what, a.cpu, b.cpu, CPU_STEP)]
    return [*rows, less("operations but for attention", needed["ours"], needed["lightly"], "GFLOP a step")]


def check_agreement(own: float, reference: float) -> None:
    """Raises RuntimeError when the first losses differ: then the two steps are not the same computation."""
    if abs(own - reference) > AGREE * abs(reference):
        raise RuntimeError(f"the first losses differ: {own} and {reference}; the comparison would mean nothing")
