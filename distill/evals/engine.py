"""Runs tasks over a dataset: fp32, no gradients, one pass over each split, and the model left as it was found."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from distill.errors import UserError
from distill.evals.datasets.base import TRAIN, EvalDataset
from distill.evals.features import Batch, Encoder, Needs, device_of, run_pass
from distill.evals.packed import packed_linears
from distill.evals.prompts import TextCache
from distill.evals.results import TaskResult
from distill.evals.task import Context, Task

Progress = Callable[[str, int], None]  # called with "train" or "test", and how many images were read since


@dataclass
class _Reader:
    needs: Needs
    read: Callable[[Batch], None]

    def __call__(self, batch: Batch) -> None:
        self.read(batch)


def run_task(task: type[Task], model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """One task on one dataset with the task's options."""
    return run_tasks(model, {task: options}, dataset)[task.name]


def check_tasks(model: Any, tasks: Mapping[type[Task], Mapping[str, Any]], dataset: EvalDataset) -> None:
    """Raises UserError, before any work, for an unknown option or for what model, dataset or its train split lack."""
    for task, options in tasks.items():
        dataset.require(f"Task '{task.name}'", *task.requires)
        chosen = task.options_from(options, dataset)
        if task.fits(chosen):
            dataset.require(f"Task '{task.name}'", TRAIN)
            dataset.train()
        task.check_model(model, chosen)


def run_tasks(
    model: Encoder,
    tasks: Mapping[type[Task], Mapping[str, Any]],
    dataset: EvalDataset,
    *,
    batch: int = 64,
    progress: Progress | None = None,
    done: Callable[[TaskResult], None] | None = None,
) -> dict[str, TaskResult]:
    """All `tasks` (class -> options) on `dataset`, by name. The images of each split are loaded and encoded once.

    Deterministic: the same model and dataset give the same numbers on one machine. `done` is given each result as soon
    as there is one; a task that fails at its end fails the call only after the others have had theirs.
    Raises UserError as `check_tasks`, and for unreadable or inconsistent data.
    """
    check_tasks(model, tasks, dataset)
    with undisturbed(model), packed_linears(model):
        started = time.perf_counter()
        context = Context(model, dataset, TextCache(model))
        running = [task(context, task.options_from(options, dataset)) for task, options in tasks.items()]
        prepared = time.perf_counter() - started
        seconds = {task.name: prepared for task in running}
        _show(model, [task for task in running if task.fits(task.options)], "train", dataset, batch, progress, seconds)
        _show(model, running, "test", dataset, batch, progress, seconds)
        return _finish(running, dataset, seconds, done)


def _show(
    model: Encoder,
    tasks: list[Task],
    split: str,
    dataset: EvalDataset,
    batch: int,
    progress: Progress | None,
    seconds: dict[str, float],
) -> None:
    """One pass over a split for `tasks`; adds each task's time to `seconds`."""
    if not tasks:
        return
    readers = [_Reader(task.needs, task.fit if split == "train" else task.read) for task in tasks]
    report = None if progress is None else (lambda count: progress(split, count))
    images = dataset.train() if split == "train" else dataset
    spent = run_pass(model, images, readers, batch=batch, progress=report)
    for task, reader in zip(tasks, readers):
        seconds[task.name] += spent[id(reader)]


def _finish(
    tasks: list[Task], dataset: EvalDataset, seconds: dict[str, float], done: Callable[[TaskResult], None] | None
) -> dict[str, TaskResult]:
    """The outcomes by task, each handed to `done`; raises what some failed with when all have been asked."""
    results: dict[str, TaskResult] = {}
    errors: list[Exception] = []
    for task in tasks:
        try:
            results[task.name] = _result(task, dataset, seconds[task.name])
        except Exception as error:
            errors.append(error)
            continue
        if done is not None:
            done(results[task.name])
    if errors:
        raise _one_of(errors)
    return results


def _one_of(errors: list[Exception]) -> Exception:
    """What to raise for them: a fault of ours before what the user can mend, and all of that in one."""
    faults = [error for error in errors if not isinstance(error, UserError)]
    if faults or len(errors) == 1:
        return (faults or errors)[0]
    return UserError(" ".join(map(str, errors)))


def _result(task: Task, dataset: EvalDataset, seconds: float) -> TaskResult:
    started = time.perf_counter()
    outcome = task.outcome()
    seconds += time.perf_counter() - started
    return TaskResult(
        task.name,
        dataset.name,
        outcome.metrics,
        outcome.protocol,
        outcome.counts,
        seconds,
        outcome.details,
        outcome.per_image,
    )


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode, fp32, no gradients inside; each module's mode and all random states as before afterwards."""
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    numpy_state, python_state = np.random.get_state(), random.getstate()
    device = device_of(model)
    devices = [device] if device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.inference_mode(False),  # probes are trained inside
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            for module in modes:
                module.training = False
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        np.random.set_state(numpy_state)
        random.setstate(python_state)
