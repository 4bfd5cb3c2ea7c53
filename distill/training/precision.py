"""What `train.precision=auto` is on this machine, and whether what was asked for is slow here."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.config.schema import TrainConfig


def choose_precision(train: TrainConfig) -> str:
    """`train.precision`, with `auto` worked out: bf16 where the hardware multiplies it, else fp32."""
    if train.precision != "auto":
        return train.precision
    fast = cpu_multiplies_bf16() if on_cpu(train) else torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if fast else "fp32"


def slow_precision(train: TrainConfig) -> str | None:
    """A warning where bf16 was asked for on a CPU that has to take it apart."""
    if train.precision != "bf16" or not on_cpu(train) or cpu_multiplies_bf16():
        return None
    return (
        "train.precision=bf16 on a CPU without bf16 products (AVX-512 bf16 or AMX) can be more than ten times slower "
        "than fp32; use train.precision=auto or fp32"
    )


def on_cpu(train: TrainConfig) -> bool:
    """Whether a run started here would train on the CPU."""
    return train.accelerator == "cpu" or (train.accelerator == "auto" and not torch.cuda.is_available())


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 dot products (AVX-512 or AMX); without them bf16 is far slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
