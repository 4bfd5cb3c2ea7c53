"""What a recipe leaves open, worked out for this machine and for the teacher that was opened."""

from __future__ import annotations

import torch

from distill.config.load import Resolved
from distill.cores import threads_each
from distill.data.decoders import choose_decoder
from distill.errors import UserError
from distill.training.precision import choose_precision, slow_precision
from distill.training.strategy import processes_here


def settle_hardware(resolved: Resolved) -> None:
    """Works out what the recipe leaves open to the machine, and records it as automatic.

    That is accelerator, precision, threads and, for shards, the JPEG decoder. Raises UserError for what is not here.
    """
    train, data = resolved.config.train, resolved.config.data
    if data.source == "shards" and data.decoder == "auto":
        resolved.set_auto("data.decoder", choose_decoder("auto"))
    if train.accelerator == "auto":
        resolved.set_auto("train.accelerator", "cuda" if torch.cuda.is_available() else "cpu")
    here = processes_here(train)
    if train.accelerator == "cuda" and torch.cuda.device_count() < here:
        raise UserError(
            f"train.devices={train.devices} with train.accelerator=cuda, but {torch.cuda.device_count()} CUDA "
            f"device(s) are here. Lower train.devices, set train.accelerator=cpu, or start the processes on several "
            f"machines with torchrun or srun (docs/launch.md)."
        )
    if train.strategy == "auto":
        resolved.set_auto("train.strategy", "ddp")
    if train.precision == "fp16" and train.accelerator == "cpu":
        raise UserError("train.precision=fp16 needs a CUDA device. On a CPU use fp32 or auto.")
    if slow := slow_precision(train):
        resolved.warnings.append(slow)
    if train.precision == "auto":
        resolved.set_auto("train.precision", choose_precision(train))
    if train.threads is None:
        resolved.set_auto("train.threads", threads_each(here))


def record_settled(resolved: Resolved) -> None:
    """Records what `auto` turned out to be for the teacher that was opened, for the papers of the run."""
    objective, heads = resolved.config.objective, resolved.config.teacher.heads
    settled = {
        "objective.cls.target": objective.cls.target,
        "objective.patch.target": objective.patch.target,
        "teacher.heads.kind": heads.kind,
    }
    for key, value in settled.items():
        if resolved.values[key].value != value:
            resolved.set_auto(key, value)
