"""Everything that changes with the step, as pure functions of progress: a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from distill.config.schema import MomentumConfig, OptimConfig, TemperatureRamp


def learning_rate(step: int, steps: int, cfg: OptimConfig, peak: float | None = None) -> float:
    """Learning rate of optimiser step `step` (0-based) of `steps`: linear warm-up, then cosine, linear or constant.

    The first step uses `peak / warmup_steps`, not zero; the last step of cosine and linear ends at `cfg.final * peak`.
    """
    peak = cfg.lr if peak is None else peak
    warmup_steps = round(cfg.warmup * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)  # 0 at the peak, 1 at the last step
    if cfg.schedule == "constant":
        return peak
    fall = 0.5 * (1 + math.cos(math.pi * done)) if cfg.schedule == "cosine" else 1 - done
    return peak * (cfg.final + (1 - cfg.final) * fall)


def momentum(step: int, steps: int, cfg: MomentumConfig) -> float:
    """Averaging momentum after optimiser step `step`: cosine from `start` to `end`."""
    done = step / max(1, steps - 1)
    return cfg.end - (cfg.end - cfg.start) * 0.5 * (1 + math.cos(math.pi * done))


def ramp(step: int, steps: int, cfg: TemperatureRamp) -> float:
    """Teacher temperature: linear from `start` to `end` over the first `warmup` share of training."""
    warmup_steps = cfg.warmup * steps
    if step >= warmup_steps:
        return cfg.end
    return cfg.start + (cfg.end - cfg.start) * step / warmup_steps
