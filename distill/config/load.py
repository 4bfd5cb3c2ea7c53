"""From a recipe and overrides to one checked, typed `Config` that knows where every value came from.

Order: defaults of the schema, then the recipe's `base` (and its base), the recipe, the overrides; later wins.
All problems are reported at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill.config import recipes, rules
from distill.config.entries import Entry, NewList, Problem, from_object, read_overrides, read_yaml
from distill.config.merge import State, build, typed
from distill.config.resolved import Resolved, Value
from distill.errors import UserError


class ConfigError(UserError):
    """Everything that is wrong with a recipe and its overrides, one line each; `.problems` holds them apart."""

    def __init__(self, recipe: str, problems: list[Problem]):
        self.recipe, self.problems = recipe, sorted(problems, key=lambda problem: problem.rank)
        lines = [str(problem) for problem in self.problems]
        super().__init__(
            lines[0] if len(lines) == 1 else f"{len(lines)} problems in {recipe}:\n  " + "\n  ".join(lines)
        )


def load_config(recipe: str | Path, overrides: list[str] | dict[str, Any] | None = None) -> Resolved:
    """Merge, check and type a recipe.

    `recipe`: a name from `distill ls` or a YAML file. `overrides`: `["optim.lr=1e-3", ...]` as on the command line, or
    a dictionary with dotted or nested keys. Raises `ConfigError` with every problem, or `UserError` for no such recipe.
    """
    found = recipes.find(recipe)
    _refuse_study(found)
    layers, problems = _read_chain(found)
    given, more = _read_given(overrides)
    problems += more
    state = State()
    for entries in layers:
        state.apply(entries)
    before, _ = typed(state.values)
    state.apply(given)
    values, more = typed(state.values)
    problems += state.problems + more
    config = build(values)
    if not config.name:
        config.name = found.stem
        values["name"] = Value(found.stem, "auto")
    where = {key: value.where for key, value in values.items()}
    wrong = {key for key in state.values if key not in values}  # already reported: rules on them would mislead
    warnings: list[str] = []
    for finding in rules.check(config):
        if finding.warning:
            warnings.append(finding.text)
        elif not wrong.intersection(finding.keys):
            problems.append(Problem(finding.place(where), finding.text))
    if problems:
        raise ConfigError(found.label, problems)
    return Resolved(config, values, before, found, _as_words(given), warnings)


def _refuse_study(found: recipes.Recipe) -> None:
    if found.is_study:
        raise UserError(f"'{found.name}' is a study, a grid of runs; use: distill study {found.name}")
    if found.is_suite:
        raise UserError(f"'{found.name}' is a list of evaluation tasks; use: distill eval MODEL {found.name}")


def _read_given(overrides: list[str] | dict[str, Any] | None) -> tuple[list[Entry], list[Problem]]:
    if isinstance(overrides, dict):
        return list(from_object((), overrides, "python")), []
    return read_overrides(list(overrides or []))


def _read_chain(
    recipe: recipes.Recipe, below: tuple[recipes.Recipe, ...] = ()
) -> tuple[list[list[Entry]], list[Problem]]:
    """Entries of the recipe and of its bases, the deepest base first. `below`: the recipes that led here."""
    entries, problems = read_yaml(recipe.text, recipe.label)
    own = [entry for entry in entries if entry.path != ("base",)]
    base = next((entry for entry in entries if entry.path == ("base",)), None)
    if base is None:
        return [own], problems
    try:
        if not isinstance(base.value, str):
            raise UserError("give the name of one recipe, or the path of a YAML file relative to this one")
        parent = recipes.find(base.value, beside=recipe.path.parent if recipe.path else None)
        chain = [*below, recipe, parent]
        if any(parent.identity == other.identity for other in chain[:-1]):
            raise UserError("recipes are based on each other in a circle: " + " -> ".join(r.label for r in chain))
        _refuse_study(parent)
    except UserError as error:
        return [own], [*problems, Problem(base.where, f"base: {error}")]
    layers, more = _read_chain(parent, (*below, recipe))
    return [*layers, own], more + problems


def _as_words(given: list[Entry]) -> list[str]:
    """The overrides as `key=value` words that can be typed again; a list of sections is one word."""
    words = []
    for entry in given:
        if not entry.part:
            content = entry.value.content if isinstance(entry.value, NewList) else entry.value
            words.append(f"{entry.key}={entry.raw if entry.raw is not None else json.dumps(content)}")
    return words
