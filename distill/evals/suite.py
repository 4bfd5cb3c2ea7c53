"""Runs requests: those on one dataset share a pass, finished ones are taken from the store, all is checked first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from distill.errors import UserError
from distill.evals.datasets import EvalDataset, check_limits, open_dataset
from distill.evals.engine import check_tasks, run_tasks
from distill.evals.registry import find_task
from distill.evals.requests import NONE, Request
from distill.evals.results import TaskResult
from distill.evals.store import Store, inputs_of


class Done(NamedTuple):
    """What a suite came to, besides the results in its store."""

    there: list[str]  # labels that were finished before
    sizes: dict[str, int]  # pixels that images were evaluated at, by dataset


Group = list[tuple[str, Request]]  # requests that share a pass, with their labels


def run_suite(
    model: Any,
    requests: Mapping[str, Request],
    store: Store,
    *,
    samples: int | None = None,
    size: int | None = None,
    batch: int = 64,
) -> Done:
    """Runs what `store` does not have yet, with a progress bar a split.

    Each result is stored as soon as there is one. Raises UserError, before any work, for what any request, its dataset
    or the model lack.
    """
    opened = _open(requests, samples, size)
    inputs = {
        label: _check(label, model, request, opened[request.dataset], samples, store)
        for label, request in requests.items()
    }
    there = [label for label in requests if store.finished(label, inputs[label]) is not None]
    for label in requests:
        if (reason := store.changed(label, inputs[label])) is not None:
            print(f"computed again: {label} ({reason})")
    todo = {label: request for label, request in requests.items() if label not in there}
    for group in groups(todo):
        labels = {request.task: label for label, request in group}

        def keep(result: TaskResult, labels: dict[str, str] = labels) -> None:
            store.add(labels[result.task], inputs[labels[result.task]], result.as_dict())

        _run(model, group, opened[group[0][1].dataset], batch, keep)
    return Done(there, {spec: dataset.size for spec, dataset in opened.items()})


def _open(requests: Mapping[str, Request], samples: int | None, size: int | None) -> dict[str, EvalDataset]:
    """The datasets that are asked for, each once."""
    opened = {}
    for spec in sorted({request.dataset for request in requests.values()}):
        check_limits(spec, samples, size)
        with _or_without({label: request for label, request in requests.items() if request.dataset == spec}):
            opened[spec] = open_dataset(spec, samples=samples, size=size)
    return opened


@contextmanager
def _or_without(requests: Mapping[str, Request]) -> Iterator[None]:
    """Adds to what stops `requests` the words that leave them out, where a recipe asks for them."""
    try:
        yield
    except UserError as error:
        words = [f"{label}={NONE}" for label, request in requests.items() if request.listed]
        if not words:
            raise
        raise UserError(f"{error} To go without: {' '.join(words)}.") from error


def _check(
    label: str, model: Any, request: Request, dataset: EvalDataset, samples: int | None, store: Store
) -> dict[str, Any]:
    """Raises UserError for what cannot run; returns what the result depends on."""
    with _or_without({label: request}):
        check_tasks(model, {find_task(request.task): request.options}, dataset)
    return inputs_of(store.header["model"], request, dataset, samples)


def groups(requests: Mapping[str, Request]) -> list[Group]:
    """Requests on one dataset together, but each task once in a group."""
    found: list[Group] = []
    for label, request in requests.items():
        for group in found:
            if group[0][1].dataset == request.dataset and all(other.task != request.task for _, other in group):
                group.append((label, request))
                break
        else:
            found.append([(label, request)])
    return found


def _run(model: Any, group: Group, dataset: EvalDataset, batch: int, done: Callable[[TaskResult], None]) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown: dict[str, Any] = {}
    with Progress(*columns) as bars:

        def advance(split: str, count: int) -> None:
            if split not in shown:
                images = dataset.train() if split == "train" else dataset
                shown[split] = bars.add_task(images.name, total=len(images))
            bars.advance(shown[split], count)

        tasks = {find_task(request.task): request.options for _, request in group}
        run_tasks(model, tasks, dataset, batch=batch, progress=advance, done=done)
