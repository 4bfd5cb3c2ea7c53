"""What a task is: it says what it needs, reads one pass (or two, if it fits something first), and sums up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, get_args, get_type_hints

from distill.errors import UserError, unknown
from distill.evals.datasets.base import EvalDataset
from distill.evals.features import Batch, Encoder, Needs
from distill.evals.prompts import TextCache


@dataclass
class Context:
    """What the tasks of one evaluation share."""

    model: Encoder
    dataset: EvalDataset
    texts: TextCache


@dataclass
class Outcome:
    """What a task has measured; the fields are those of `TaskResult`."""

    metrics: dict[str, float]
    protocol: dict[str, Any]
    counts: dict[str, int]
    details: dict[str, Any]


class TaskOptions:
    """Base of a task's options, a dataclass."""

    def resolve(self, dataset: EvalDataset) -> None:
        """Fills in what the dataset decides; UserError for a value that cannot be used."""


class Task(ABC):
    """One evaluation task. A new one is a file with a subclass, and a line in `distill.evals.registry`.

    `requires` names what the dataset must have. A task that requires TRAIN is shown the train split through `fit`
    first; every task is then shown the dataset through `read`, each image once, in batches of one shape.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    text: ClassVar[bool] = False  # whether it needs the model's text tower
    headline: ClassVar[tuple[str, ...]]  # the metrics a table shows
    Options: ClassVar[type[TaskOptions]]  # a dataclass; every field has a default

    def __init__(self, context: Context, options: Any):
        self.context, self.options = context, options

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What it reads from a pass."""

    def fit(self, batch: Batch) -> None:
        """One batch of the train split (tasks that require TRAIN)."""
        raise NotImplementedError(f"{self.name} does not fit anything")

    @abstractmethod
    def read(self, batch: Batch) -> None:
        """One batch of the evaluated split."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """The numbers, after the last batch. `protocol` need not repeat the options."""

    @classmethod
    def options_from(cls, given: Mapping[str, Any], dataset: EvalDataset) -> Any:
        """The task's options for this dataset; UserError for a name it does not have, and for a wrong value."""
        hints = get_type_hints(cls.Options)
        for name, value in given.items():
            if name not in hints:
                raise unknown(f"option of {cls.name}", name, hints)
            if not any(_is_a(value, hint) for hint in get_args(hints[name]) or (hints[name],)):
                raise UserError(f"{cls.name}.{name} = {value!r}: it must be of type {_type_name(hints[name])}.")
        options = cls.Options(**given)
        options.resolve(dataset)
        return options

    def protocol(self, **more: Any) -> dict[str, Any]:
        """The options as used, the image size and fit, and `more`."""
        return {**asdict(self.options), "size": self.context.dataset.size, "fit": self.needs.fit, **more}


def _is_a(value: Any, kind: Any) -> bool:
    """Whether an option's value fits its type; a whole number passes for a float, a tuple for a list."""
    wider = {float: (int, float), list: (list, tuple)}
    return not isinstance(value, bool) and isinstance(value, wider.get(kind, kind))


def _type_name(hint: Any) -> str:
    kinds = [getattr(kind, "__name__", str(kind)) for kind in get_args(hint) or (hint,)]
    return " or ".join(kind.replace("NoneType", "null") for kind in kinds)


def choice(task: str, option: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises UserError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise unknown(f"{task}.{option}", str(value), allowed)
