"""Two processes over gloo, however started and whatever each holds, and accumulation, against one process."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import distill
from distill.models.loading import find_checkpoint, read_checkpoint
from distill.models.shard_files import places
from distill.training import checkpoint, stopping
from distill.training.metrics import read_metrics
from distill.training.stopping import StopVote

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
if sys.platform == "linux":
    ENVIRONMENT["GLOO_SOCKET_IFNAME"] = "lo"  # no name lookup of this machine


def words(tmp_path: Path, overrides: dict[str, Any], *flags: str) -> list[str]:
    """`distill run` on the command line, without the interpreter."""
    keys = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return ["-m", "distill", "run", "pretrain/scenes_tiny", *keys, "--runs", str(tmp_path), *flags]


def free_port() -> str:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return str(it.getsockname()[1])


def torchrun(processes: int = 2) -> list[str]:
    where = ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *where]


def finish(*commands: list[str], environments: tuple[dict[str, str], ...] = ({},)) -> None:
    """Starts all commands and waits until each has ended well."""
    started = [
        subprocess.Popen(c, env=ENVIRONMENT | e, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for c, e in zip(commands, environments, strict=True)
    ]
    try:
        errors = [process.communicate(timeout=280)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), "".join(errors)[-3000:]


def student_weights(folder: Path) -> dict[str, torch.Tensor]:
    saved = read_checkpoint(find_checkpoint(folder))
    state = saved["teacher"]["state"]
    teacher = {f"teacher.{part}.{k}": v for part in ("heads", "trunk") for k, v in state.get(part, {}).items()}
    student = saved["students"]["student"]
    spare = {f"ema.{k}": v for k, v in (student["ema"] or {}).items()}
    weights = {**spare, **student["weights"], **{f"heads.{k}": v for k, v in student["heads"].items()}, **teacher}
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
    apart = {name: (first[name] - second[name]).double() for name in first}
    typical = {name: float(value.square().mean().sqrt()) for name, value in apart.items()}
    assert max(typical.values()) < 5e-7, sorted(typical.items(), key=lambda kv: -kv[1])[:5]
    # AdamW moves an element whose gradient is near nothing by up to its rate whatever the size, so that rounding shows:
    # by 1.5e-5 in one element on a CPU with AVX2 alone, with a rate of 5e-4
    worst = {name: float(value.abs().max()) for name, value in apart.items()}
    assert max(worst.values()) < 5e-5, sorted(worst.items(), key=lambda kv: -kv[1])[:5]
    for one, two in zip(read_metrics(a / "metrics.csv"), read_metrics(b / "metrics.csv"), strict=True):
        for loss in losses:
            # six digits are written: they may differ by one unit of the last, and no more than that
            unit = 10.0 ** (math.floor(math.log10(two[loss])) - 5)
            assert one[loss] == pytest.approx(two[loss], abs=1.01 * unit), (one["step"], loss)


TERMS = ("loss", "student/contrastive", "student/cls", "student/patch", "student/patch_masked", "student/patch_visible")


def test_two_processes_are_one(tmp_path: Path, small, small_run):
    # AdamW's first steps scale rounding up with the learning rate: this is the schema's default
    changes = {"train.steps": 3, "optim.lr": 5e-4, "mask.kind": "block", "optim.weight_decay": 0.1}
    changes["text.context"] = 6  # so that captions are cut
    one = small_run("one", **changes).folder
    two = {"train.devices": 2, "train.accumulate": 2}
    finish([sys.executable, *words(tmp_path, small(name="two", **changes, **two))])
    assert json.loads((tmp_path / "two" / "env.json").read_text())["world"] == 2
    assert_close(one, tmp_path / "two", TERMS)
    cut = [read_checkpoint(find_checkpoint(folder))["cut"] for folder in (one, tmp_path / "two")]
    assert cut[0] == cut[1] > 0  # of both processes together
    # and a run of two can go on as one: order and views do not depend on the number of processes
    longer = {**changes, "train.steps": 4, "optim.schedule": "constant"}
    assert small_run("two", resume=True, **longer).step == 4


FAILING = """
import os, sys
from distill.cli import main
from distill.data.failures import Failures
from distill.errors import UserError

add = Failures.add

def fails_on_one_rank(self, batch):
    add(self, batch)
    if os.environ["RANK"] == "1":
        raise UserError("half of the samples could not be used")

Failures.add = fails_on_one_rank
sys.exit(main(sys.argv[1:]))
"""


def test_too_many_failures_on_one_rank_stop_both_with_one_error(tmp_path: Path, small):
    keys = words(tmp_path, small(name="a", **{"train.devices": 2}))[2:]
    alike = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    alike |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FAILING, *keys],
            env=ENVIRONMENT | alike | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    for process in started:
        told = process.communicate(timeout=280)[1]
        assert process.returncode == 2, told[-3000:]
        assert "error: half of the samples could not be used" in told


# Nothing depends on how many steps there are to be: a run may go on for longer than it was meant to.
STEADY = {
    "optim.lr": 1e-4,  # AdamW scales the rounding of small gradients up to this in its first steps
    "optim.warmup": 0.0,
    "optim.schedule": "constant",
    "teacher.momentum.start": 0.9,
    "teacher.momentum.end": 0.9,
    "objective.patch.teacher_temperature.start": 0.07,
}
FSDP = {"train.devices": 2, "train.strategy": "fsdp"}


def test_weights_spread_over_two_processes_are_those_of_one(tmp_path: Path, small, small_run):
    """FSDP under torchrun: student and averaged teacher in shards, accumulation, checkpointing, a live evaluation."""
    changes = STEADY | {"teacher.mode": "ema", "students.0.depth": 2, "eval.tasks": ["retrieval"]}
    changes |= {"eval.dataset": "scenes:32", "eval.samples": 8, "objective.contrastive.loss": "sigmoid"}
    changes |= {"students.0.ema": 0.9}
    changes |= {"eval.every": 2, "train.log_every": 3, "guard.every": 0}  # step 2 is written for its evaluation alone
    one = small_run("one", **changes, **{"train.steps": 4}).folder
    spread = FSDP | {"teacher.shard": True, "train.accumulate": 2, "train.checkpointing": "selective"}
    finish(torchrun() + words(tmp_path, small(name="two", **changes, **spread, **{"train.steps": 3})))
    two = tmp_path / "two"
    kept = checkpoint.existing(two / "checkpoints")[-1]
    assert {path.suffix for path in kept.iterdir()} == {".pt", ".safetensors"}
    assert len(list(kept.iterdir())) == 3
    # one process reads the shards: to use the model, and to go on exactly
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = distill.load(f"run:{two}").encode_image(images)[0]
    assert torch.equal(before, distill.load(str(kept)).encode_image(images)[0])
    assert small_run("two", resume=True, **changes, **{"train.steps": 4}).step == 4
    evaluated = [name for name in read_metrics(one / "metrics.csv")[0] if name.startswith("eval/")]
    assert {name.split("/")[1] for name in evaluated} == {"student", "student.ema", "teacher"}
    assert_close(one, two, TERMS)
    norms = [[row["gradient_norm"] for row in read_metrics(folder / "metrics.csv")] for folder in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    second = [read_metrics(folder / "metrics.csv")[0] for folder in (one, two)]
    assert [row["step"] for row in second] == [2, 2]
    assert [second[0][name] for name in evaluated] == pytest.approx([second[1][name] for name in evaluated], abs=1e-3)


def test_srun_starts_the_processes(tmp_path: Path, small):
    """By the variables that SLURM sets for each task."""
    keys = small(name="tasks", **{"train.steps": 1, "train.devices": 2})
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    tasks = tuple(job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2))
    finish(*[[sys.executable, *words(tmp_path, keys)]] * 2, environments=tasks)
    assert json.loads((tmp_path / "tasks" / "env.json").read_text())["world"] == 2
    assert [path.name for path in (tmp_path / "tasks" / "checkpoints").iterdir()] == ["step_00000001.pt"]


@pytest.mark.slow
def test_a_killed_run_of_shards_goes_on_bit_identically(tmp_path: Path, small):
    changes = FSDP | {"train.steps": 9, "train.checkpoint_every": 3, "text.dropout": 0.1, "train.accumulate": 2}
    changes |= {"train.checkpointing": "full", "train.keep": 9}
    finish(torchrun() + words(tmp_path, small(name="whole", **changes)))
    command = torchrun() + words(tmp_path, small(name="killed", **changes))
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 200
    while not (tmp_path / "killed" / "checkpoints" / "step_00000003").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.step_of(checkpoint.existing(tmp_path / "killed" / "checkpoints")[-1]) < 9
    resume = [*words(tmp_path, small(name="killed", **changes)), "--resume"]
    finish(torchrun() + resume)
    ends = [read_checkpoint(find_checkpoint(tmp_path / name), optimizers=True) for name in ("whole", "killed")]
    first, second = ({k: v for k, v in places(content).items() if isinstance(v, torch.Tensor)} for content in ends)
    assert first.keys() == second.keys()
    assert len(first) > 100
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    finish(torchrun() + resume)  # nothing is left to do, and no process waits for another


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ema_head", "cotrained", "none"])
def test_a_run_of_one_process_goes_on_in_three_with_shards(tmp_path: Path, small, small_run, mode):
    changes = STEADY | {"teacher.mode": mode, "train.batch": 6, "train.checkpointing": "full"}
    changes |= {"teacher.arch": "tiny/8", "teacher.depth": 1} if mode == "cotrained" else {}
    one = small_run("one", **changes, **{"train.steps": 4}).folder
    small_run("three", **changes, **{"train.steps": 2})
    spread = FSDP | {"train.devices": 3, "train.steps": 4}
    finish(torchrun(3) + words(tmp_path, small(name="three", **changes, **spread), "--resume"))
    assert checkpoint.existing(tmp_path / "three" / "checkpoints")[-1].is_dir()
    assert_close(one, tmp_path / "three", TERMS)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_frozen_teacher_may_be_spread_whatever_the_strategy(tmp_path: Path, small, small_run, strategy):
    teacher = small_run("teacher", **{"train.steps": 1}).folder
    changes = STEADY | {"teacher.mode": "frozen", "teacher.source": f"run:{teacher}", "mask.ratio": 0.0}
    changes.pop("teacher.momentum.start"), changes.pop("teacher.momentum.end")
    one = small_run("one", **changes, **{"train.steps": 3}).folder
    spread = {"train.devices": 2, "train.strategy": strategy, "teacher.shard": True, "train.steps": 3}
    finish(torchrun() + words(tmp_path, small(name="two", **changes, **spread)))
    assert_close(one, tmp_path / "two", ("loss", "student/contrastive", "student/cls", "student/patch"))


@pytest.mark.parametrize(("loss", "parts"), [("softmax", 2), ("sigmoid", 8)])
def test_accumulated_micro_batches_tick_once_and_average(small_run, loss, parts):
    """Gradients of micro-batches, down to one image each, are the big batch's: the contrast looks across all of it."""
    # AdamW scales the rounding of small gradients up to the rate: a wrong one moves a weight by ten times the tolerance
    changes = {"objective.contrastive.loss": loss, "train.steps": 3, "mask.ratio": 0.5, "optim.lr": 1e-4}
    whole = small_run("whole", **changes).folder
    cut = small_run("cut", **changes, **{"train.accumulate": parts}).folder
    assert_close(whole, cut, TERMS)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path, small):
    changes = {"train.devices": 2, "train.steps": 4000, "train.checkpoint_every": 2}
    environments = [{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} for rank in "01"]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "TORCHELASTIC_RUN_ID": "1"}
    command = [sys.executable, *words(tmp_path, small(name="stopped", **changes))]
    started = [
        subprocess.Popen(command, env=ENVIRONMENT | meeting | own, stderr=subprocess.PIPE, text=True)
        for own in environments
    ]
    end = time.monotonic() + 200
    while not checkpoint.existing(tmp_path / "stopped" / "checkpoints"):
        assert started[0].poll() is None and time.monotonic() < end
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=100)[1] for process in started]
    assert [process.returncode for process in started] == [130, 130], said
    assert "--resume" in said[0]
    assert 2 <= read_checkpoint(find_checkpoint(tmp_path / "stopped"))["step"] < 4000


def test_an_accelerators_vote_is_answered_a_step_later(monkeypatch):
    waited = []
    arrival = SimpleNamespace(synchronize=lambda: waited.append(1))
    copies = iter([0, 0, 1, 2])  # how many ranks were asked to stop, step by step
    monkeypatch.setattr(stopping, "all_reduce_sum", lambda votes: votes)
    monkeypatch.setattr(stopping, "_on_its_way", lambda votes: (next(copies), arrival))
    vote = StopVote(SimpleNamespace(world_size=2, device=torch.device("meta")))
    assert [vote.passed(False) for _ in range(4)] == [False, False, False, True]
    assert len(waited) == 3
