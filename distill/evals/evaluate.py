"""`distill.evaluate`: tasks by keyword, each on a dataset of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.errors import UserError
from distill.evals.datasets import EvalDataset
from distill.evals.features import Encoder
from distill.evals.registry import find_task
from distill.evals.results import TaskResult
from distill.evals.run import check_evaluation, opened
from distill.evals.run import evaluate as evaluate_one


def evaluate(
    model: Encoder, *, samples: int | None = None, size: int | None = None, batch: int = 64, **tasks: Any
) -> dict[str, TaskResult]:
    """`distill.evaluate(model, zeroshot_seg="scenes", knn="folder:/data/pets")`: each task on the dataset it is given.

    A task's value is a dataset string, an open dataset, or a dict with "dataset" and the task's options.
    Tasks with equal datasets share a pass. samples, size: as in `open_dataset`; only with strings.
    Raises UserError as `distill.evals.run.evaluate`, before any work.
    """
    groups: dict[Any, dict[str, dict[str, Any]]] = {}
    datasets: dict[Any, EvalDataset] = {}
    for name, value in tasks.items():
        find_task(name)
        options = dict(value) if isinstance(value, Mapping) else {"dataset": value}
        dataset = options.pop("dataset", None)
        if not isinstance(dataset, str | EvalDataset):
            raise UserError(f"Task '{name}' has no dataset: write {name}='scenes' or {name}={{'dataset': ..., ...}}.")
        key = dataset if isinstance(dataset, str) else id(dataset)
        if key not in datasets:
            datasets[key] = opened(dataset, samples, size)
        groups.setdefault(key, {})[name] = options
    results: dict[str, TaskResult] = {}
    for key, group in groups.items():
        check_evaluation(group, datasets[key], model)
    for key, group in groups.items():
        results |= evaluate_one(model, group, datasets[key], batch=batch)
    return {name: results[name] for name in tasks}
