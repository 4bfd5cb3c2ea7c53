"""What a run took weights and targets from, with the licences of it: they bind what the run made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from distill.errors import UserError
from distill.models.sources import describe
from distill.models.sources.base import SourceFacts

FILE = "sources.json"  # in a run's folder: a list of origins
Origin = dict[str, str | None]  # key of the recipe, source, sha256, licence


def origins(named: Mapping[str, str], known: Mapping[str, SourceFacts]) -> list[Origin]:
    """Of the sources `named` by the recipe's keys, and where one is a run, of what that was made from too.

    `known`: facts of sources that have been looked at. What cannot be is named without hash and licence.
    """
    found: list[Origin] = []
    for key, source in named.items():
        facts = known.get(source) or _facts(source)
        sha256, licence = (None, None) if facts is None else (facts.sha256, facts.licence)
        found.append({"key": key, "source": source, "sha256": sha256, "licence": licence})
        if facts is not None:
            found += [{**origin, "key": f"{key}, {origin['key']}"} for origin in read_origins(facts)]
    return found


def read_origins(facts: SourceFacts) -> list[Origin]:
    """The origins of a run of ours, from its folder; none where it has not kept them, and of any other source."""
    folder = run_folder(facts)
    try:
        return [] if folder is None else json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []


def run_folder(facts: SourceFacts) -> Path | None:
    """The folder of the run that a model is from, where it is one."""
    if facts.kind != "run":
        return None
    return next((parent for parent in Path(facts.where).parents if (parent / "resolved.yaml").is_file()), None)


def _facts(source: str) -> SourceFacts | None:
    try:
        return describe(source)
    except UserError:
        return None
