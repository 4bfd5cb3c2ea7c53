"""What a task is: it says what it needs, reads one pass (or two, if it fits something first), and sums up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, get_args, get_type_hints

from distill.errors import UserError, unknown
from distill.evals.datasets.base import TRAIN, EvalDataset
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
    per_image: dict[str, Any] = field(default_factory=dict)


class TaskOptions:
    """Base of a task's options, a dataclass."""

    def resolve(self, dataset: EvalDataset) -> None:
        """Fills in what the dataset decides; UserError for a value that cannot be used."""


class Task(ABC):
    """One evaluation task. A new one is a file with a subclass, and a line in `distill.evals.registry`.

    `requires` names what the dataset must have. A task that `fits` something is shown the train split through `fit`
    first; every task is then shown the dataset through `read`, each image once, in batches of one shape.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    text: ClassVar[bool] = False  # whether it needs the model's text tower
    headline: ClassVar[tuple[str, ...]]  # the metrics a table shows
    units: ClassVar[Mapping[str, str]] = {}  # of headline metrics that are no shares, such as "m" (`report.unit_of`)
    Options: ClassVar[type[TaskOptions]]  # a dataclass; every field has a default
    revision: ClassVar[int] = 1  # raise it when the same options come to give other numbers: kept results are then old
    files: ClassVar[tuple[str, ...]] = ()  # options that name a file, whose content moves the numbers
    resources: ClassVar[tuple[str, ...]] = ()  # options of what it may use up, such as memory: they move no number

    def __init__(self, context: Context, options: Any):
        self.context, self.options = context, options

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What it reads from a pass."""

    @classmethod
    def fits(cls, options: Any) -> bool:
        """Whether it is shown the train split, with these options."""
        return TRAIN in cls.requires

    @classmethod
    def check_model(cls, model: Any, options: Any) -> None:
        """UserError for what the model lacks; what a stand-in for any model does not say is not asked for."""
        if cls.text and getattr(model, "encode_text", None) is None:
            raise UserError(f"Task '{cls.name}' compares images with texts, but the model has no text tower.")

    def fit(self, batch: Batch) -> None:
        """One batch of the train split (tasks that fit something)."""
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

    @classmethod
    def settings(cls, options: Any) -> dict[str, Any]:
        """The options that move the numbers."""
        return {name: value for name, value in asdict(options).items() if name not in cls.resources}

    def protocol(self, **more: Any) -> dict[str, Any]:
        """The options as used, but for `resources`, image size and fit, what was fitted on, if anything, and `more`."""
        dataset, fitted = self.context.dataset, {}
        if self.fits(self.options):
            fitted["fitted_on"] = f"{dataset.train().name}, {len(dataset.train())} images"
        return {**self.settings(self.options), "size": dataset.size, "fit": self.needs.fit, **fitted, **more}


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


def require_layers(task: str, model: Any) -> None:
    """Raises UserError for a model that does not give the outputs of earlier blocks."""
    if not hasattr(model.image, "layers"):
        raise UserError(f"Task '{task}' reads the outputs of earlier blocks, which this model does not give.")


def require_values(model: Any) -> None:
    """Raises UserError for a model whose last block has no value path."""
    check = getattr(model.image, "check_values", None)  # foreign towers have it; ours all have the path
    if check is not None:
        check()


def at_least(task: str, option: str, value: float, least: float) -> None:
    """Raises UserError for a value below `least`."""
    if value < least:
        raise UserError(f"{task}.{option} = {value}: it must be at least {least:g}.")


def above_zero(task: str, option: str, value: float) -> None:
    """Raises UserError for a value of 0 or less."""
    if value <= 0:
        raise UserError(f"{task}.{option} = {value}: it must be above 0.")


def rates_of(task: str, option: str, given: Any) -> list[float]:
    """Learning rates of a sweep: one number or several, all above 0."""
    rates = list(given) if isinstance(given, list | tuple) else [given]
    numbers = [rate for rate in rates if isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0]
    if not rates or len(numbers) != len(rates):
        raise UserError(f"{task}.{option} = {rates}: it must be numbers above 0, such as 0.001 or 0.001,0.01.")
    if len(set(rates)) != len(rates):
        raise UserError(f"{task}.{option} = {rates} repeats one. Give each once.")
    return [float(rate) for rate in rates]
