"""Two processes over gloo, and accumulation, against one process with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.training import checkpoint
from distill.training.metrics import read_metrics


def student_weights(folder: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(checkpoint.existing(folder / "checkpoints")[-1], weights_only=True)
    teacher = {f"teacher.{k}": v for k, v in saved["teacher"]["state"]["heads"].items()}
    student = saved["students"]["student"]
    weights = {**student["weights"], **{f"heads.{k}": v for k, v in student["heads"].items()}, **teacher}
    return {name: without_key_bias(name, value) for name, value in weights.items()}


def without_key_bias(name: str, value: torch.Tensor) -> torch.Tensor:
    """`value` without the key third of an attention's biases.

    A bias on the keys shifts all of a query's scores alike: its gradient is zero but for rounding, which AdamW scales
    up to the learning rate. It has no effect, and no two ways of summing agree on it.
    """
    if not name.endswith("attn.qkv.bias"):
        return value
    query, _, values = value.chunk(3)
    return torch.cat([query, values])


def assert_close(a: Path, b: Path, losses: tuple[str, ...]) -> None:
    first, second = student_weights(a), student_weights(b)
    assert first.keys() == second.keys()
    worst = {name: float((first[name] - second[name]).abs().max()) for name in first}
    assert max(worst.values()) < 1e-5, sorted(worst.items(), key=lambda kv: -kv[1])[:5]
    for one, two in zip(read_metrics(a / "metrics.csv"), read_metrics(b / "metrics.csv"), strict=True):
        for loss in losses:
            assert one[loss] == pytest.approx(two[loss], abs=1e-5), (one["step"], loss)


TERMS = ("loss", "student/contrastive", "student/cls", "student/patch", "student/patch_masked", "student/patch_visible")


def test_two_processes_are_one(tmp_path: Path, small, small_run):
    # AdamW's first steps scale rounding up with the learning rate: this is the schema's default
    changes = {"train.steps": 3, "optim.lr": 5e-4, "mask.kind": "block", "optim.weight_decay": 0.1}
    one = small_run("one", **changes).folder
    overrides = small(name="two", **changes, **{"train.devices": 2})
    words = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    done = subprocess.run(
        [sys.executable, "-m", "distill", "run", "pretrain/scenes_tiny", *words, "--runs", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "env.json").read_text())["world"] == 2
    assert_close(one, tmp_path / "two", TERMS)
    # and a run of two can go on as one: order and views do not depend on the number of processes
    longer = {**changes, "train.steps": 4, "optim.schedule": "constant"}
    assert small_run("two", resume=True, **longer).step == 4


@pytest.mark.parametrize(("loss", "parts"), [("softmax", 2), ("sigmoid", 8)])
def test_accumulated_micro_batches_tick_once_and_average(small_run, loss, parts):
    """Gradients of micro-batches, down to one image each, are the big batch's: the contrast looks across all of it."""
    changes = {"objective.contrastive.loss": loss, "train.steps": 3, "mask.ratio": 0.5, "optim.lr": 5e-4}
    whole = small_run("whole", **changes).folder
    cut = small_run("cut", **changes, **{"train.accumulate": parts}).folder
    assert_close(whole, cut, TERMS)
