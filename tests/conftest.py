"""Small runs for the tests: a one-block encoder on 32 px scenes with the paper's objective, quick steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.training.checkpoint import existing
from distill.training.run import run

SMALL = {
    "data.scenes.size": 32,
    "data.scenes.count": 64,
    "data.workers": 0,
    "views.global_size": 32,
    "views.local_size": 16,
    "views.locals": 2,
    "students.0.depth": 1,
    "vision.position_grid": 4,
    "text.layers": 1,
    "text.context": 16,
    "heads.prototypes": 32,
    "heads.hidden": 32,
    "heads.bottleneck": 16,
    "captions.cls2": ["synthetic", "detailed"],
    "vision.gelu": "tanh",
    "vision.kernels": "xavier",
    "objective.patch.balance": "center",
    "objective.patch.teacher_temperature.start": 0.04,
    "objective.patch.teacher_temperature.end": 0.07,
    "objective.cls.balance": "center",
    "objective.cls.teacher_temperature": 0.07,
    "optim.lr": 1e-3,
    "train.steps": 4,
    "train.batch": 8,
    "train.threads": 1,
    "train.log_every": 1,
    "train.accelerator": "cpu",
    "train.precision": "fp32",
    "log.tensorboard": False,
    "eval.dataset": "scenes",
    "eval.tasks": [],
}


@pytest.fixture
def small():
    """Overrides of a small run, with changes: `small(**{"train.steps": 2})`."""
    return lambda **changes: SMALL | changes


@pytest.fixture
def small_run(tmp_path: Path, small):
    """Runs a small run: `small_run("a", **changes) -> RunResult` in a folder of the test's own."""

    def start(name: str = "a", *, resume: bool = False, **changes):
        return run("pretrain/scenes_tiny", small(name=name, **changes), runs=tmp_path, resume=resume)

    return start


@pytest.fixture
def saved():
    """`saved(folder)`: the content of a run's newest checkpoint."""
    return lambda folder: torch.load(existing(folder / "checkpoints")[-1], weights_only=True)
