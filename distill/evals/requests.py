"""What is asked of `distill eval`: which task, on which dataset, with which options; from words or from a recipe.

A task may be asked for several times, under labels: `zeroshot_seg@pc59=pascal_context59:DIR`. The label, which is the
task's name unless there is an `@`, names the result. `LABEL=none` leaves a recipe's task out, `TASK=none` all of that
task's labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from distill.config.recipes import find
from distill.errors import UserError, unknown

KEYS = ("tasks", "samples", "size", "batch")  # of a recipe
NONE = "none"  # instead of a dataset: leave this out of the recipe
DATA = "{data}"  # in a recipe's datasets: the folder given with --data


@dataclass
class Request:
    """One task on one dataset."""

    task: str
    dataset: str
    options: dict[str, Any] = field(default_factory=dict)
    listed: bool = False  # in a recipe, so that LABEL=none leaves it out


@dataclass
class Suite:
    """Requests by label, and what a recipe says for all of them (None: not said)."""

    requests: dict[str, Request]
    samples: int | None = None
    size: int | None = None
    batch: int | None = None


def read_suite(words: Sequence[str], data: str | None = None) -> Suite:
    """A recipe (a word without `=`, at most one) and words that win over it.

    Words: `LABEL=DATASET`, `LABEL.option=value`, and `LABEL=none` or `TASK=none`, which leave tasks of the recipe out.

    `data`: the folder that the recipe's datasets are below. UserError for what is unknown, given twice or missing.
    """
    recipes = [word for word in words if _is_recipe(word)]
    if len(recipes) > 1:
        raise UserError(f"'{recipes[1]}' is one recipe too many, after '{recipes[0]}'. Give one, and TASK=DATASET.")
    suite = _from_recipe(recipes[0], data) if recipes else Suite({})
    given = parse_words([word for word in words if word not in recipes], known=suite.requests)
    suite.requests = _without(suite.requests, given)
    for label, slots in given.items():
        request = suite.requests.setdefault(label, Request(task_of(label), ""))
        request.dataset = slots.pop("dataset", request.dataset)
        request.options |= slots
    if not suite.requests:
        raise UserError("No task. Write task=dataset, such as zeroshot_seg=scenes; distill eval --help lists them.")
    return suite


def _without(requests: dict[str, Request], given: dict[str, dict[str, Any]]) -> dict[str, Request]:
    """A recipe's requests without those that `LABEL=none` and `TASK=none` name; takes these words out of `given`."""
    left_out: set[str] = set()
    labels = [label for label, slots in given.items() if slots.get("dataset") == NONE]
    for label in labels:
        names = {name for name, request in requests.items() if label in (name, request.task)}
        if not names:
            has = f"the recipe has only {', '.join(requests)}" if requests else "there is no recipe"
            raise UserError(f"'{label}={NONE}' leaves out a recipe's task, but {has}. Leave the word out.")
        for name in sorted({label, *names}):
            slots = given.get(name, {})
            if slots.get("dataset", NONE) == NONE and set(slots) - {"dataset"}:
                raise UserError(
                    f"'{label}={NONE}' leaves {name} out, but there are options for it. Give one or the other."
                )
        left_out |= names
    for label in labels:
        del given[label]
    return {name: request for name, request in requests.items() if name not in left_out}


def _is_recipe(word: str) -> bool:
    """A word without `=`, unless it begins with a task: then its dataset or value was forgotten."""
    from distill.evals.registry import TASKS

    return "=" not in word and word.partition("@")[0].partition(".")[0] not in TASKS


def task_of(label: str) -> str:
    """The task of a label `TASK` or `TASK@NAME`; UserError for one that does not exist."""
    from distill.evals.registry import find_task

    task, mark, name = label.partition("@")
    find_task(task)
    if mark and not name:
        raise UserError(f"'{label}' has no name after the @. Write {task}@NAME, such as {task}@ade.")
    return task


def parse_words(words: Sequence[str], known: Any = ()) -> dict[str, dict[str, Any]]:
    """`LABEL=DATASET` and `LABEL.option=value` -> `{label: {"dataset": ..., option: value}}`, in the order given.

    `known`: labels that have a dataset already, so that options alone will do.
    """
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        label, dot, option = name.partition(".")
        task = task_of(label)
        if not equals or not value:
            raise UserError(f"'{word}' has no value. Write {task}=DATASET, such as {task}=scenes.")
        slot = option if dot else "dataset"
        if slot in found.setdefault(label, {}):
            raise UserError(f"'{name}' is given twice. Give each once, or call the second {task}@NAME.")
        found[label][slot] = parse_value(value) if dot else value
    for label, slots in found.items():
        if "dataset" not in slots and label not in known:
            raise UserError(f"Task '{label}' has options but no dataset. Add {label}=DATASET, such as {label}=scenes.")
    return found


def parse_value(text: str) -> Any:
    """An option's value: a whole number, a number, true or false, a list of such (with commas), or the text itself."""
    if "," in text:
        return [parse_value(part) for part in text.split(",") if part]
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _from_recipe(name: str, data: str | None) -> Suite:
    """`tasks: {LABEL: DATASET or {dataset: ..., option: value}}`, and samples, size, batch."""
    recipe = find(name)
    try:
        content = yaml.safe_load(recipe.text)
    except yaml.YAMLError as error:
        raise UserError(f"{recipe.label} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), dict):
        raise UserError(f"{recipe.label} is no evaluation recipe: it has no 'tasks: {{TASK: DATASET, ...}}'.")
    for key in content:
        if key not in KEYS:
            raise unknown(f"key of {recipe.label}", str(key), KEYS)
    for key in KEYS[1:]:
        if content.get(key) is not None and not isinstance(content[key], int):
            raise UserError(f"{recipe.label}: {key} = {content[key]!r}; it must be a whole number.")
    tasks = {str(label): entry for label, entry in content["tasks"].items()}
    requests = {label: _request(recipe.label, label, entry, data) for label, entry in tasks.items()}
    return Suite(requests, *(content.get(key) for key in KEYS[1:]))


def _request(recipe: str, label: str, entry: Any, data: str | None) -> Request:
    options = dict(entry) if isinstance(entry, dict) else {"dataset": entry}
    dataset = options.pop("dataset", None)
    if not isinstance(dataset, str):
        raise UserError(f"{recipe}: '{label}' has no dataset. Write {label}: DATASET, or {{dataset: DATASET, ...}}.")
    if DATA in dataset:
        if data is None:
            raise UserError(f"{recipe} reads {dataset}. Say where its datasets are: --data DIR.")
        dataset = dataset.replace(DATA, data.rstrip("/"))
    return Request(task_of(label), dataset, options, listed=True)
