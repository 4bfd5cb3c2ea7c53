"""One measured line, and how it is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measurement of ours beside the reference's. `ratio` says how many times better ours is: above 1, ours wins.

    `reference` and `ratio` are None where there is nothing to compare with; `ours` is None where it was not measured,
    and then `note` says why.
    """

    what: str
    ours: float | None
    reference: float | None
    ratio: float | None
    unit: str
    note: str = ""


def less(what: str, ours: float, reference: float, unit: str, note: str = "") -> Row:
    """A row of which less is better, such as seconds or MiB: the ratio is reference / ours."""
    return Row(what, ours, reference, reference / ours, unit, note)


def more(what: str, ours: float, reference: float, unit: str, note: str = "") -> Row:
    """A row of which more is better, such as steps per second: the ratio is ours / reference."""
    return Row(what, ours, reference, ours / reference, unit, note)


def plain(what: str, ours: float, unit: str, note: str = "") -> Row:
    """A row without a reference."""
    return Row(what, ours, None, None, unit, note)


def not_measured(what: str, unit: str, why: str) -> Row:
    """A row that could not be measured here; `why` in a few words."""
    return Row(what, None, None, None, unit, f"not measured: {why}")
