"""The training loop: optimiser steps from batches, and what must happen around each one.

On Lightning Fabric, which brings devices, precision and process groups and leaves the step in plain sight: with two
optimisers, ticks once per optimiser step and exact resume, an explicit loop is shorter than the hooks it would take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from distill.config.schema import Config
from distill.data.loader import Failures
from distill.errors import UserError
from distill.models.sharding import whole
from distill.objectives.distributed import all_gather_objects, all_reduce_sum
from distill.objectives.prototypes import PrototypeTargets
from distill.training.distiller import Distiller, StepOutput
from distill.training.guard import Guard, diagnose, over_ranks
from distill.training.metrics import MetricLog
from distill.training.negatives import Replay, first_pass, needs_features
from distill.training.optim import set_learning_rate
from distill.training.progress import TrainingProgress
from distill.training.schedules import learning_rate, momentum, ramp
from distill.training.spare import Spare
from distill.training.stopping import Interrupted, StopRequest, StopVote
from distill.training.strategy import end_step, is_sharded_run
from distill.views.batch import Batch
from teachers.base import Teacher


@dataclass
class TrainState:
    """What changes while training. `step` counts finished optimiser steps."""

    cfg: Config
    fabric: Fabric
    module: Any  # the Distiller as Fabric wraps it
    distiller: Distiller
    teacher: Teacher
    optimizers: dict[str, Any]
    guard: Guard
    failures: Failures
    spares: dict[str, Spare] = field(default_factory=dict)
    step: int = 0
    cut: int = 0  # captions that were longer than the context
    seconds: float = 0.0  # training time over all sittings, without evaluations and checkpoints
    data: dict[str, Any] | None = None  # what a resumed loader must agree on

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate of each optimiser in the 0-based step `step`."""
        cfg = self.cfg
        peaks = {"students": cfg.optim.lr, "teacher": cfg.teacher.lr or cfg.optim.lr}
        return {name: learning_rate(step, cfg.train.steps, cfg.optim, peaks[name]) for name in self.optimizers}


@dataclass
class Hooks:
    """What the run adds to the loop: each is called with the state after a step."""

    log: MetricLog | None
    progress: TrainingProgress | None
    save: Callable[[TrainState], None]
    evaluate: Callable[[TrainState], dict[str, float]]


class Means:
    """Running means of scalar tensors by name; NaN values (a part with no tokens) are left out."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            there = ~torch.isnan(value)
            self.sums[name] = self.sums.get(name, 0) + torch.where(there, value, torch.zeros_like(value))
            self.counts[name] = self.counts.get(name, 0) + there.float()

    def take(self, fabric: Fabric) -> dict[str, float]:
        """Means over steps and ranks since the last call; names without any value are left out."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        table = torch.stack([torch.stack([self.sums[n], self.counts[n]]) for n in names])  # [names, 2]
        if fabric.world_size > 1:
            table = all_reduce_sum(table)
        self.sums, self.counts = {}, {}
        return {n: float(total / count) for n, (total, count) in zip(names, table.tolist()) if count > 0}


def train(state: TrainState, batches: Iterator[Batch], hooks: Hooks) -> None:
    """Trains from `state.step` to the end; raises Interrupted when stopped, Collapse when the guard stops it.

    Too many failures of data on one rank stop all of them, with the same UserError: none is left waiting for another.
    """
    cfg = state.cfg
    problem: UserError | None = None
    means = Means()
    vote = StopVote(state.fabric)
    with StopRequest() as stop:
        while state.step < cfg.train.steps:
            began, waited = time.monotonic(), 0.0
            micro: list[Batch] = []
            for _ in range(cfg.train.accumulate):
                start = time.monotonic()
                micro.append(next(batches))
                waited += time.monotonic() - start
            output, extra = optimiser_step(state, micro)
            means.add(output.parts | extra | {"loss": output.loss})
            for batch in micro:
                problem = _failed(state, batch) or problem
                state.cut += batch.cut
            state.seconds += time.monotonic() - began
            _after_step(state, hooks, means, output, sum(len(b) for b in micro), waited)
            if vote.passed(stop.asked or problem is not None) and state.step < cfg.train.steps:
                for told in all_gather_objects(problem):
                    if told is not None:
                        raise told
                state.guard.check_finite(state.step)
                hooks.save(state)
                raise Interrupted


def _failed(state: TrainState, batch: Batch) -> UserError | None:
    """Counts what of a batch could not be used; what is wrong where that is too much. Raises it in a single process."""
    try:
        state.failures.add(batch)
    except UserError as error:
        if state.fabric.world_size == 1:
            raise
        return error
    return None


def optimiser_step(state: TrainState, micro: list[Batch]) -> tuple[StepOutput, dict[str, Tensor]]:
    """One optimiser step over its micro-batches. Averages and centres tick once, after it.

    Returns the last micro-batch's output, with `loss` and `parts` averaged over all of them, and further scalars.
    """
    cfg, fabric = state.cfg, state.fabric
    temperature = ramp(state.step, cfg.train.steps, cfg.objective.patch.teacher_temperature)
    means, loss = Means(), torch.zeros((), device=fabric.device)
    replay = Replay(len(micro)) if needs_features(cfg) else None
    kind = cfg.objective.contrastive.loss
    slopes = first_pass(state.module, micro, fabric.device, kind, replay) if replay else [None] * len(micro)
    keeps_gradients = not is_sharded_run(cfg.train)  # until the last micro-batch; sharded, they would be held whole
    for i, batch in enumerate(micro):
        batch = batch.to(fabric.device, non_blocking=True)
        if replay:
            replay.start(i)
        with fabric.no_backward_sync(state.module, enabled=keeps_gradients and i < len(micro) - 1):
            output = state.module(batch, temperature, slopes[i])
            fabric.backward(output.loss / len(micro))
        means.add(output.parts)
        state.guard.watch(output.parts, {})
        loss = loss + output.loss.detach()
    if replay:
        replay.end()
    norm = _update(state)
    state.teacher.follow(momentum(state.step, cfg.train.steps, cfg.teacher.momentum))
    state.teacher.tick(cfg.objective.center_momentum)
    state.distiller.clamp_temperature(cfg.objective.contrastive.min_temperature)
    for spare in state.spares.values():
        spare.follow()
    state.step += 1
    averaged = {name: total / means.counts[name].clamp_min(1) for name, total in means.sums.items()}
    averaged = {n: torch.where(means.counts[n] > 0, v, torch.nan) for n, v in averaged.items()}
    patch = output.targets.patch  # fitted heads have a temperature of their own
    used = patch.temperature if isinstance(patch, PrototypeTargets) else temperature
    if not isinstance(used, Tensor):
        used = torch.full((), used, device=fabric.device)  # filled there: nothing is copied, so no GPU waits
    extra = {"teacher_temperature": used.to(fabric.device)}
    if norm is not None:
        extra["gradient_norm"] = norm
    return StepOutput(loss / len(micro), averaged, output.clean, output.targets), extra


def _update(state: TrainState) -> Tensor | None:
    """Clips and applies the gradients of every optimiser; returns the students' gradient norm where it is known."""
    cfg, step = state.cfg, state.step + 1
    norms: dict[str, Tensor] = {}
    rates = state.rates(state.step)
    for name, optimizer in state.optimizers.items():
        set_learning_rate(optimizer, rates[name])
        if cfg.optim.clip > 0:
            norms |= _clip(state, optimizer)
    if cfg.train.precision != "fp16":  # a scaler meets infinite gradients by design and skips the step
        state.guard.watch({}, norms)
    # Reading values waits for an accelerator, so there it is done only on the steps that are logged or kept.
    if state.fabric.device.type == "cpu" or _due(cfg.train.log_every, step) or _is_kept(cfg, step):
        state.guard.check_finite(step)
    for optimizer in state.optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    end_step(state.fabric)
    students = [norm for name, norm in norms.items() if name in state.distiller.students]
    return torch.stack(students).norm() if students else None


def _clip(state: TrainState, optimizer: Any) -> dict[str, Tensor]:
    """Clips each student, or the co-trained teacher, by itself: how one trains does not depend on those beside it.

    Returns the gradient norms there were, by name.
    """
    state.fabric.strategy.precision.unscale_gradients(optimizer.optimizer)
    owner = {id(p): name for name, learner in state.distiller.learners().items() for p in learner.parameters()}
    owned: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            owned.setdefault(owner[id(parameter)], []).append(parameter)
    return {name: whole(clip_grad_norm_(parameters, state.cfg.optim.clip)) for name, parameters in owned.items()}


def _after_step(state: TrainState, hooks: Hooks, means: Means, output: StepOutput, images: int, waited: float) -> None:
    cfg, step = state.cfg, state.step
    last = step == cfg.train.steps
    guards = _due(cfg.guard.every, step)
    evaluates = _due(cfg.eval.every, step) or (last and bool(cfg.eval.tasks))
    values: dict[str, float] = {}
    if guards:
        seen = over_ranks(diagnose(output))
        values |= {f"guard/{name}": float(value) for name, value in seen.items()}
        state.guard.check_collapse(seen, step)
    if last or guards or evaluates or _due(cfg.train.log_every, step):  # alike on every rank: the means are collective
        values |= means.take(state.fabric)
        values |= {f"lr/{name}": rate for name, rate in state.rates(step - 1).items()}
        values["seconds"] = state.seconds
        if hooks.progress is not None:
            values |= {"images_per_s": hooks.progress.rate(), "data_wait": hooks.progress.data_wait()}
    if evaluates and _is_kept(cfg, step):
        hooks.save(state)  # first: an evaluation may fail, and take long
    try:
        if evaluates:
            values |= hooks.evaluate(state)
    finally:
        if values and hooks.log is not None:
            hooks.log.write(step, values)
    if hooks.progress is not None:
        hooks.progress.update(step, images * state.fabric.world_size, waited, values.get("loss"))
    if not evaluates and _is_kept(cfg, step):
        hooks.save(state)


def _is_kept(cfg: Config, step: int) -> bool:
    """Whether a checkpoint is written after this step."""
    return step % cfg.train.checkpoint_every == 0 or step == cfg.train.steps


def _due(every: int, step: int) -> bool:
    """Whether something done every so many steps (0: never) is done after this one."""
    return every > 0 and step % every == 0
