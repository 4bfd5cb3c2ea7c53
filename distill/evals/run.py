"""Several tasks on one dataset, for live evaluation, studies and the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from distill.errors import UserError
from distill.evals.datasets import EvalDataset, open_dataset
from distill.evals.engine import Progress, check_tasks, run_tasks
from distill.evals.features import Encoder
from distill.evals.registry import find_task
from distill.evals.results import TaskResult


def evaluate(
    model: Encoder,
    tasks: Mapping[str, Mapping[str, Any]] | Iterable[str],
    dataset: EvalDataset | str,
    samples: int | None = None,
    *,
    size: int | None = None,
    batch: int = 64,
    progress: Progress | None = None,
) -> dict[str, TaskResult]:
    """Runs `tasks` (names, or name -> options) on one dataset and returns their results by name.

    model: an `ImageTextModel`, or anything with `encode_image`, `encode_text` and `image.patch`. Its training mode and
        the random states of torch, numpy and python are the same afterwards; everything runs in fp32 without gradients.
    dataset: an open dataset (kept between calls, it caches what it renders), or a string for `open_dataset`.
    samples, size: as in `open_dataset`; only with a string.
    All tasks share one pass over the dataset, and one over its train split if any of them fits something.
    Raises UserError for an unknown task or option, and for what the dataset or the model lack.
    """
    chosen = {find_task(name): dict(options) for name, options in _named(tasks).items()}
    return run_tasks(model, chosen, opened(dataset, samples, size), batch=batch, progress=progress)


def opened(dataset: EvalDataset | str, samples: int | None = None, size: int | None = None) -> EvalDataset:
    """The dataset, opened if it is a string; UserError for limits with an open one."""
    if isinstance(dataset, str):
        return open_dataset(dataset, samples=samples, size=size)
    if samples is not None or size is not None:
        raise UserError("samples and size belong to open_dataset: an open dataset has them already.")
    return dataset


def check_evaluation(
    tasks: Mapping[str, Mapping[str, Any]] | Iterable[str], dataset: EvalDataset | str, model: Any | None = None
) -> None:
    """Raises UserError for what `evaluate` would refuse, without running anything (the model is optional)."""
    chosen = {find_task(name): dict(options) for name, options in _named(tasks).items()}
    data = opened(dataset, samples=8) if isinstance(dataset, str) else dataset
    check_tasks(model if model is not None else _AnyModel(), chosen, data)


class _AnyModel:
    """Stands for a model that has everything, when only the data is checked."""

    encode_text = True
    image = SimpleNamespace(layers=True)


def _named(tasks: Mapping[str, Mapping[str, Any]] | Iterable[str]) -> dict[str, Mapping[str, Any]]:
    if isinstance(tasks, str):
        tasks = [tasks]
    return dict(tasks) if isinstance(tasks, Mapping) else {name: {} for name in tasks}
