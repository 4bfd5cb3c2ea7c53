"""What sets the runs of a comparison apart beside its factors, in the words that stand next to its seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.study.averages import rows_of

Row = Mapping[str, Any]

WORDS = {  # by the name of a `Finding`'s flag
    "mixed": "bf16 against fp32",
    "elsewhere": "different hardware",
    "retaught": "another teacher of that recipe",
}


def unequal(results: Mapping[str, Any], first: str | None, second: str) -> dict[str, bool]:
    """Which of WORDS hold for the two runs of some seed; none where there is no first variant."""
    one, two = ({row["seed"]: row for row in rows_of(results, name)} if name else {} for name in (first, second))
    pairs = [(one[seed], two[seed]) for seed in one.keys() & two.keys()]
    return {
        "mixed": any(_differ("precision", *pair) for pair in pairs),
        "elsewhere": any(_differ("device", *pair) for pair in pairs),
        "retaught": any(_retaught(a, b) or _retaught(b, a) for a, b in pairs),
    }


def _differ(key: str, one: Row, two: Row) -> bool:
    return bool(one["environment"].get(key) != two["environment"].get(key))


def _retaught(teacher: Row, student: Row) -> bool:
    """Whether the first row's recipe taught the second, but another run of it.

    A teacher's row that does not record its weights is another run to a student that says what taught it.
    """
    if student["teacher"] != f"{teacher['variant']}-s{teacher['seed']}":
        return False
    taught_by = student.get("taught_by")
    return taught_by is not None and teacher.get("weights") != taught_by
