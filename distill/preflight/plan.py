"""Memory, time and length of a recipe on given devices, what bounds it, and what to change when it does not fit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psutil
import torch

from distill.config import rules
from distill.config.load import load_config
from distill.config.resolved import Resolved
from distill.config.schema import Config
from distill.cores import threads_each
from distill.errors import UserError
from distill.preflight.cost import Cost, images_at_once, step_cost
from distill.preflight.counts import Counts, count_models, text_tokens
from distill.preflight.hardware import CPU, RESERVED, Device, find_gpu
from distill.preflight.memory import CHECKPOINTING, Layout
from distill.preflight.probe import cpu_seconds
from distill.preflight.roofline import gpu_seconds
from distill.training.papers import cpu_name
from distill.training.precision import choose_precision

DEFAULT_GPU = "h100"
OWN = ("gpu", "gpus")  # words of `distill plan` that are no settings of a recipe


@dataclass(frozen=True)
class Way:
    """One way to run the recipe: settings to add to it, and what they make of it."""

    settings: list[str]
    memory: float  # bytes on each device
    seconds: float | None  # an optimiser step; None on a CPU, which is not probed again


@dataclass
class Plan:
    """What a run will take. `ways` is empty when it fits as it is, or when nothing known would make it fit."""

    recipe: str
    device: str
    source: str  # where the device's figures come from
    devices: int
    precision: str
    images: int  # at once on each device
    cost: Cost
    capacity: float  # bytes that a run may use on each device
    parts: dict[str, float]  # seconds of an optimiser step by what they go into
    steps: int
    batch: int
    peak: float | None  # dense operations a second of one device; None where it is not known
    notes: list[str] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of one optimiser step."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.cost.total_memory <= self.capacity

    @property
    def days(self) -> float:
        """Of the whole run, evaluation and checkpoints left out."""
        return self.seconds * self.steps / 86400

    @property
    def tokens(self) -> int:
        """Image and text tokens of the whole run, every pass counted."""
        return self.steps * (self.cost.image_tokens + self.cost.text_tokens)

    @property
    def utilisation(self) -> float | None:
        """The recipe's own operations as a share of the devices' peak."""
        return None if self.peak is None else self.cost.flops / self.seconds / (self.peak * self.devices)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        derived = ("seconds", "fits", "days", "tokens", "utilisation")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def split_words(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """`gpu=` and `gpus=` apart from the settings of the recipe."""
    own: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key in OWN and equals:
            own[key] = value
    return own, [word for word in words if word.partition("=")[0] not in OWN]


def make_plan(recipe: str, words: list[str]) -> tuple[Plan, Resolved]:
    """Plans `recipe` with settings and `gpu=NAME gpus=N` in `words`. Raises UserError for what is not valid."""
    own, overrides = split_words(words)
    name = own.get("gpu", DEFAULT_GPU)
    device = None if name == CPU else find_gpu(name)
    overrides += [f"train.accelerator={CPU if device is None else 'cuda'}"]
    if "gpus" in own:
        if not own["gpus"].isdigit() or int(own["gpus"]) < 1:
            raise UserError(f"gpus is {own['gpus']}. Allowed: 1 or more, as gpus=8.")
        overrides.append(f"train.devices={own['gpus']}")
    resolved = load_config(recipe, overrides)
    counts = count_models(resolved.config)
    plan = plan_on_cpu(resolved, counts) if device is None else plan_on_gpu(resolved, counts, device)
    return plan, resolved


def plan_on_gpu(resolved: Resolved, counts: Counts, device: Device) -> Plan:
    """By the device's data sheet; suggests ways when the memory does not suffice."""
    config = resolved.config
    precision = "bf16" if config.train.precision == "auto" else config.train.precision
    plan = _plan(resolved, counts, precision, device.name, device.source)
    plan.capacity = device.memory * (1 - RESERVED)
    plan.peak = device.fp32 if precision == "fp32" else device.flops
    plan.parts = gpu_seconds(config, counts, plan.cost.passes, precision, device, Layout.of(config))
    plan.notes.append("times come from data sheets and assumed shares of their peaks, not from a measurement")
    if not plan.fits:
        plan.ways = ways_to_fit(config, counts, precision, device, plan.capacity)
    return plan


def plan_on_cpu(resolved: Resolved, counts: Counts) -> Plan:
    """By short probes on this machine, with the threads that one process of the run would have."""
    config = resolved.config
    precision = choose_precision(replace(config.train, accelerator="cpu"))
    threads = config.train.threads or threads_each(config.train.devices)
    plan = _plan(resolved, counts, precision, CPU, f"{cpu_name()}, probed with {threads} threads")
    plan.capacity = psutil.virtual_memory().available / config.train.devices
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plan.parts = cpu_seconds(config, counts, plan.cost.passes, precision)
    finally:
        torch.set_num_threads(before)
    if not plan.fits:
        plan.ways = ways_to_fit(config, counts, precision, None, plan.capacity)
    if config.train.devices > 1:
        plan.notes.append("exchange between processes is not counted on a CPU")
    return plan


def _plan(resolved: Resolved, counts: Counts, precision: str, device: str, source: str) -> Plan:
    train = resolved.config.train
    cost = step_cost(resolved.config, counts, precision)
    images = images_at_once(resolved.config)
    notes = [*counts.notes, *resolved.warnings]
    return Plan(
        resolved.path,
        device,
        source,
        train.devices,
        precision,
        images,
        cost,
        0,
        {},
        train.steps,
        train.batch,
        None,
        notes,
    )


def ways_to_fit(config: Config, counts: Counts, precision: str, device: Device | None, capacity: float) -> list[Way]:
    """For each kind of checkpointing, with whole and with spread weights, the fewest micro-batches that fit.

    Settings say all that must be added to the recipe, so `none` and `ddp` too where it has something else. The quickest
    first, or on a CPU (no `device`) the shortest; at most three, none when not even one image at a time fits.
    """
    strategies = ("ddp", "fsdp") if config.train.devices > 1 else (config.train.strategy,)
    found: list[Way] = []
    for strategy in strategies:
        for kind in CHECKPOINTING:
            way = _fewest_micro_batches(config, counts, precision, device, strategy, kind, capacity)
            if way is not None:
                found.append(way)
    return sorted(found, key=_rank)[:3]


def _rank(way: Way) -> tuple[float, int]:
    """Time, to 1 %, then length."""
    return 0.0 if way.seconds is None else round(math.log(way.seconds), 2), len(way.settings)


def _fewest_micro_batches(
    config: Config,
    counts: Counts,
    precision: str,
    device: Device | None,
    strategy: str,
    checkpointing: str,
    capacity: float,
) -> Way | None:
    images = config.train.batch // config.train.devices
    for accumulate in (n for n in range(config.train.accumulate, images + 1) if images % n == 0):
        train = replace(config.train, accumulate=accumulate, strategy=strategy, checkpointing=checkpointing)
        changed = replace(config, train=train)
        counts = replace(counts, text_tokens=text_tokens(changed))
        cost = step_cost(changed, counts, precision)
        if cost.total_memory <= capacity:
            if _errors(changed) - _errors(config):
                return None
            seconds = None
            if device is not None:
                parts = gpu_seconds(changed, counts, cost.passes, precision, device, Layout.of(changed))
                seconds = sum(parts.values())
            return Way(_settings(config, changed), cost.total_memory, seconds)
    return None


def _errors(config: Config) -> set[str]:
    """What `distill check` would refuse `config` for."""
    return {finding.text for finding in rules.check(config) if not finding.warning}


def _settings(before: Config, after: Config) -> list[str]:
    """What to add to `before` so that it trains as `after`; `auto` is ddp."""
    was, now = before.train, after.train
    settings = [f"train.accumulate={now.accumulate}"] if now.accumulate != was.accumulate else []
    spread = [train.strategy == "fsdp" for train in (was, now)]
    settings += [f"train.strategy={now.strategy}"] if spread[0] != spread[1] else []
    return settings + ([f"train.checkpointing={now.checkpointing}"] if now.checkpointing != was.checkpointing else [])
