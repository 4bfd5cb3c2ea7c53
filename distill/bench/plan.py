"""What `distill plan ... gpu=cpu` says, beside a measured step of the same recipe.

Ours is the plan, the reference what was measured: CPU seconds of an optimiser step (the median of those after the
first two), and the rise of resident memory from before the models are built to the peak of two steps. The note gives
the plan's deviation. One CPU thread, batches of scenes; in bf16 too where the CPU multiplies it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.fabric import Fabric

from distill.bench.measure import MIB, cpu_precisions, interleave, peak_memory, use_threads
from distill.bench.rows import Row
from distill.config.load import load_config
from distill.config.schema import Config
from distill.data.captions import caption_fields
from distill.data.failures import Failures
from distill.data.sources import caption_texts, open_source
from distill.preflight.cost import step_cost
from distill.preflight.counts import count_models
from distill.preflight.probe import cpu_seconds
from distill.training.assemble import assemble
from distill.training.build import Built
from distill.training.loop import optimiser_step
from distill.training.run import training_state
from distill.training.strategy import PRECISIONS

HERE = {"train.accelerator": "cpu", "data.source": "scenes", "data.workers": 0}
SMALL = {
    "data.shards": None,
    "students.0.arch": "S/14",
    "views.global_size": 112,
    "views.local_size": 56,
    "text.tokenizer": "words",
    "text.layers": 6,
    "text.context": 32,
    "heads.prototypes": 8192,
    "train.batch": 8,
    "train.devices": 1,
}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "scenes_tiny": ("pretrain/scenes_tiny", {}),
    "scenes_tiny, 6 locals, full EMA, batch 32": (
        "pretrain/scenes_tiny",
        {"views.locals": 6, "teacher.mode": "ema", "train.batch": 32},
    ),
    "S/14, 112 px, 2 locals, 8,192 prototypes": ("pretrain/tipsv2_b14", {**SMALL, "views.locals": 2}),
    "S/14, 112 px, 6 locals, no mask": ("pretrain/tipsv2_b14", {**SMALL, "views.locals": 6, "mask.ratio": 0.0}),
}


def measure(quick: bool) -> list[Row]:
    precisions, names = cpu_precisions(), list(RECIPES)
    if quick:
        precisions, names = precisions[:1], names[:1]
    return [row for name in names for precision in precisions for row in compare(name, precision, quick)]


def compare(name: str, precision: str, quick: bool) -> list[Row]:
    """The plan of a recipe beside what was measured: time and memory of a step."""
    config = config_of(name, precision)
    counts = count_models(config)
    cost = step_cost(config, counts, precision)
    with use_threads(1):
        took = interleave({"step": started(config)}, rounds=1 if quick else 3, warmup=2).pop("step").cpu
        planned = sum(cpu_seconds(config, counts, cost.passes, precision, clock=time.process_time).values())
    rose = peak_memory(prepare_run, name, precision, fresh=not quick)
    return [
        deviation(f"{name}, {precision}: step", planned, took, "s of CPU"),
        deviation(f"{name}, {precision}: memory", cost.total_memory / MIB, rose, "MiB"),
    ]


def deviation(what: str, planned: float, measured: float, unit: str) -> Row:
    return Row(what, planned, measured, None, unit, f"plan {planned / measured - 1:+.0%}")


def config_of(name: str, precision: str) -> Config:
    recipe, changes = RECIPES[name]
    return load_config(recipe, {**HERE, **changes, "train.precision": precision}).config


def prepare_run(name: str, precision: str) -> Callable[[], Any]:
    """A call that builds the whole run and takes two steps."""

    def call() -> None:
        step = started(config_of(name, precision))
        step()
        step()

    return call


def started(config: Config) -> Callable[[], Any]:
    """A call that takes an optimiser step of a run of `config`, always on the same batch of scenes."""
    fabric = Fabric(accelerator="cpu", devices=1, precision=PRECISIONS[config.train.precision])
    source = open_source(config.data)
    assembly = assemble(config, caption_texts(source, caption_fields(config.captions), 500))
    state = training_state(config, fabric, assembly, Failures())
    state.module.train()
    batches = iter(Built(config, fabric, source, assembly, kept=None).loader(0))
    return partial(optimiser_step, state, [next(batches) for _ in range(config.train.accumulate)])
