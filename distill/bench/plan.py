"""What `distill plan ... gpu=cpu` says, beside a measured step of the same recipe.

Ours is the plan, the reference what was measured: CPU seconds of an optimiser step (the median of those after the
first two), and the rise of resident memory from before the models are built to the peak of two steps. The note gives
the plan's deviation. One CPU thread, batches of scenes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.fabric import Fabric

from distill.bench.measure import MIB, interleave, peak_memory, use_threads
from distill.bench.rows import Row
from distill.config.load import load_config
from distill.config.schema import Config
from distill.data.failures import Failures
from distill.data.sources import caption_texts, open_source
from distill.preflight.cost import step_cost
from distill.preflight.counts import count_models
from distill.preflight.probe import cpu_seconds
from distill.training.assemble import assemble
from distill.training.build import Built
from distill.training.loop import optimiser_step
from distill.training.run import training_state

HERE = {"train.accelerator": "cpu", "train.precision": "fp32", "data.source": "scenes", "data.workers": 0}
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
    rows = []
    for name in list(RECIPES)[: 1 if quick else None]:
        config = config_of(name)
        counts = count_models(config)
        cost = step_cost(config, counts, "fp32")
        with use_threads(1):
            took = interleave({"step": started(config)}, rounds=1 if quick else 3, warmup=2).pop("step").cpu
            planned = sum(cpu_seconds(config, counts, cost.passes, "fp32", clock=time.process_time).values())
        rows.append(deviation(f"{name}: step", planned, took, "s of CPU"))
        rose = peak_memory(prepare_run, name, fresh=not quick)
        rows.append(deviation(f"{name}: memory", cost.total_memory / MIB, rose, "MiB"))
    return rows


def deviation(what: str, planned: float, measured: float, unit: str) -> Row:
    return Row(what, planned, measured, None, unit, f"plan {planned / measured - 1:+.0%}")


def config_of(name: str) -> Config:
    recipe, changes = RECIPES[name]
    return load_config(recipe, {**HERE, **changes}).config


def prepare_run(name: str) -> Callable[[], Any]:
    """A call that builds the whole run and takes two steps."""

    def call() -> None:
        step = started(config_of(name))
        step()
        step()

    return call


def started(config: Config) -> Callable[[], Any]:
    """A call that takes an optimiser step of a run of `config`, always on the same batch of scenes."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    source = open_source(config.data)
    assembly = assemble(config, caption_texts(source, config.captions.cls1 + config.captions.cls2, 500))
    state = training_state(config, fabric, assembly, Failures())
    state.module.train()
    batches = iter(Built(config, fabric, source, assembly, kept=None).loader(0))
    return partial(optimiser_step, state, [next(batches) for _ in range(config.train.accumulate)])
