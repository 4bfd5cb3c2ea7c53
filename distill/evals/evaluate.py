"""`distill.evaluate`: tasks by keyword, each on a dataset of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.errors import UserError
from distill.evals.datasets import EvalDataset
from distill.evals.features import Encoder
from distill.evals.registry import find_task
from distill.evals.results import TaskResult
from distill.evals.run import evaluate as evaluate_one


def evaluate(
    model: Encoder, *, samples: int | None = None, size: int | None = None, batch: int = 64, **tasks: Any
) -> dict[str, TaskResult]:
    """`distill.evaluate(model, zeroshot_seg="scenes", knn="folder:/data/pets")`: each task on the dataset it is given.

    A task's value is a dataset string, an open dataset, or a dict with "dataset" and the task's options.
    Tasks with equal datasets share a pass. Raises UserError as `distill.evals.run.evaluate`.
    """
    groups: dict[Any, dict[str, dict[str, Any]]] = {}
    opened: dict[Any, EvalDataset | str] = {}
    for name, value in tasks.items():
        find_task(name)
        options = dict(value) if isinstance(value, Mapping) else {"dataset": value}
        dataset = options.pop("dataset", None)
        if not isinstance(dataset, str | EvalDataset):
            raise UserError(f"Task '{name}' has no dataset: write {name}='scenes' or {name}={{'dataset': ..., ...}}.")
        key = dataset if isinstance(dataset, str) else id(dataset)
        opened[key] = dataset
        groups.setdefault(key, {})[name] = options
    results: dict[str, TaskResult] = {}
    for key, group in groups.items():
        dataset = opened[key]
        limits = (samples, size) if isinstance(dataset, str) else (None, None)
        results |= evaluate_one(model, group, dataset, limits[0], size=limits[1], batch=batch)
    return {name: results[name] for name in tasks}
