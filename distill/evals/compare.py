"""`distill eval --compare A.json B.json`: two models' results side by side, with bootstrap intervals over images.

Where both kept what a bootstrap needs for the same images, images are drawn together (a paired bootstrap), and the
interval is that of B minus A; else A and B have an interval each, where they kept it. 1,000 rounds, 95 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.evals.per_image import draws, interval, resampled
from distill.evals.registry import find_task
from distill.evals.report import unit_of
from distill.evals.results import ABSENT, UNIT, first_difference
from distill.evals.store import read_results

FITTED = ("train_images", "index_images")  # counts of images that a task was fitted on or looked in
Interval = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One metric of both."""

    label: str
    dataset: str
    metric: str
    unit: str | None  # None: a share
    first: float
    second: float
    first_interval: Interval | None
    second_interval: Interval | None
    difference_interval: Interval | None  # of second minus first, over the same images


@dataclass(frozen=True)
class Comparison:
    """What can be compared of two files, and why the rest cannot: one sentence a task."""

    lines: list[Line]
    refused: list[str]


def compare_files(first: Path, second: Path) -> Comparison:
    """The headline metrics of tasks that both files have; UserError when none of these can be compared."""
    one, two = read_results(first)["results"], read_results(second)["results"]
    both = [label for label in one if label in two]
    if not both:
        raise UserError(f"{first} ({', '.join(one)}) and {second} ({', '.join(two)}) have no task in common.")
    found = Comparison([], [])
    for label in both:
        try:
            found.lines.extend(compare_results(label, one[label], two[label]))
        except UserError as error:
            found.refused.append(str(error))
    if len(found.refused) == len(both):
        raise UserError(" ".join(found.refused))
    return found


def compare_results(label: str, one: dict[str, Any], two: dict[str, Any]) -> list[Line]:
    """One task's headline metrics; UserError when the two were measured on different data or in different ways."""
    for what, first, second in _must_agree(one, two):
        if first != second:
            raise UserError(f"{label}: {_difference(what, first, second)}, so the two cannot be compared.")
    _check_images(label, one, two)
    headline = find_task(one["task"]).headline
    names = [name for name in headline if name in one["metrics"] and name in two["metrics"]]
    return [_line(label, name, one, two) for name in names]


def _must_agree(one: dict[str, Any], two: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What two results of a task must share, by name, as the two have it."""
    # Files of earlier versions have resources among the protocol, and not the unit, which the dataset decides.
    moves_nothing = (*find_task(one["task"]).resources, UNIT)
    first, second = ({k: v for k, v in r["protocol"].items() if k not in moves_nothing} for r in (one, two))
    yield "dataset", one["dataset"], two["dataset"]
    yield "protocol", first, second
    first, second = ({k: v for k, v in r["counts"].items() if k in FITTED} for r in (one, two))
    yield "counts", first, second  # files of earlier versions do not say what was fitted on


def _check_images(label: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    """UserError where the splits that were fitted on, or evaluated ones of one size, are known to hold other images."""
    for part, verb in (("fitted", "fitted"), ("images", "measured")):
        first, second = (result.get("inputs", {}).get(part) for result in (one, two))
        if first is None or second is None or first["contents"] == second["contents"]:
            continue
        if part == "fitted" or first["images"] == second["images"]:
            on = [f"{found['name']} ({found['images']} images, {found['contents'][:8]})" for found in (first, second)]
            raise UserError(
                f"{label}: the first was {verb} on {on[0]} of {one['inputs']['dataset']}, the second on {on[1]} of "
                f"{two['inputs']['dataset']}: other images or labels, so the two cannot be compared."
            )


def _difference(what: str, one: Any, two: Any) -> str:
    found = first_difference(one, two) if isinstance(one, dict) and isinstance(two, dict) else None
    if found is None:
        return f"the first has {what} {one!r}, the second {two!r}"
    first = f"no {what} {found.key}" if found.one is ABSENT else f"{what} {found.key} = {found.one!r}"
    return f"the first has {first}, the second {'has none' if found.two is ABSENT else repr(found.two)}"


def _line(label: str, name: str, one: dict[str, Any], two: dict[str, Any]) -> Line:
    spread = [_bootstrap(result.get("per_image", {}).get(name)) for result in (one, two)]
    paired = None
    if spread[0] is not None and spread[1] is not None and len(spread[0]) == len(spread[1]):
        same = [len(result["per_image"][name]["values"]) for result in (one, two)]
        paired = interval(spread[1] - spread[0]) if same[0] == same[1] else None
    own = [None if values is None else interval(values) for values in spread]
    unit = unit_of(one if UNIT in one["protocol"] else two, name)
    images = [result["counts"]["images"] for result in (one, two)]
    dataset = one["dataset"] if images[0] == images[1] else f"{one['dataset']}, {images[0]} and {images[1]} images"
    return Line(label, dataset, name, unit, one["metrics"][name], two["metrics"][name], own[0], own[1], paired)


def _bootstrap(samples: dict[str, Any] | None) -> Any:
    """The metric in each round `[rounds]`; equal numbers of images get equal draws."""
    return None if samples is None else resampled(samples, draws(len(samples["values"])))
