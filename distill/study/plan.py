"""From a study recipe to its cells: every variant resolved for every seed, and refused if it changes too much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config.schema import Config
from distill.errors import UserError, unknown
from distill.study.address import address, content
from distill.study.averages import averages_trunk, is_average, plain
from distill.study.recipe import Pair, StudyRecipe, Variant, checked_eval, covers

Resolve = Callable[[str, dict[str, Any]], Config]
"""(run recipe, dotted overrides) -> typed config; raises UserError."""


@dataclass(frozen=True)
class Cell:
    """One variant under one seed. `overrides` on top of `base` give `content`, whose hash is `address`."""

    variant: str
    seed: int
    base: str
    overrides: dict[str, Any]
    content: dict[str, Any]
    address: str
    size: int  # side of its global crops in pixels: evaluation images have it too
    teacher: str | None = None  # name of the cell that is its frozen teacher

    @property
    def name(self) -> str:
        return cell_name(self.variant, self.seed)


@dataclass(frozen=True)
class Plan:
    """A study ready to run: `cells` by name, teachers before their students."""

    recipe: StudyRecipe
    seeds: tuple[int, ...]
    root: Path  # runs/<study>
    cells: dict[str, Cell]
    eval: dict[str, Any]

    def folder(self, cell: Cell) -> Path:
        """Where the cell's run, result and pictures are: runs/<study>/cells/<variant>-s<seed>."""
        return self.root / "cells" / cell.name

    def differing_factors(self, first: str, second: str) -> list[str]:
        """Declared factors in which two variants differ; an averaged trunk differs as its variant does."""
        seed = self.seeds[0]
        one, two = (self.cells[cell_name(plain(v), seed)].content for v in (first, second))
        return list(_by_factor(self.recipe.factors, _differing(one, two)))

    def switches(self, cell: Cell) -> dict[str, Any]:
        """The values of the study's factor keys in this cell."""
        keys = [k for group in self.recipe.factors.values() for k in group]
        return {k: v for k, v in cell.content.items() if any(covers(key, k) for key in keys)}


def cell_name(variant: str, seed: int) -> str:
    return f"{variant}-s{seed}"


def make_plan(
    recipe: StudyRecipe,
    resolve: Resolve,
    overrides: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    runs: Path = Path("runs"),
    name: str | None = None,
) -> Plan:
    """Resolve and check every cell.

    `overrides` are dotted keys for all variants; those under `eval.` change the study's evaluation. Raises UserError
    for a key that is a factor, a variant that changes anything but factors, a comparison of variants that differ in
    other factors than it says, and two variants that are the same.
    """
    shared, evaluation = _split_overrides(recipe, overrides or {})
    root = runs / (name or recipe.study)
    chosen = tuple(seeds) if seeds is not None else recipe.seeds
    cells: dict[str, Cell] = {}
    for seed in chosen:
        for variant in recipe.variants.values():
            cell = _make_cell(recipe, variant, seed, {**recipe.changes, **shared}, cells, root, resolve)
            cells[cell.name] = cell
    plan = Plan(recipe, chosen, root, cells, evaluation)
    plain = content(resolve(recipe.base, {**recipe.changes, **shared, "seed": chosen[0]}))
    for variant in recipe.variants.values():
        _refuse_extra(recipe, variant, plain, cells[cell_name(variant.name, chosen[0])].content)
    if not recipe.checks:  # a trial may be one of the teachers
        _refuse_twins(plan)
    for pair in recipe.compare:
        _check_pair(plan, pair)
    return plan


def select(plan: Plan, variants: Sequence[str]) -> set[str]:
    """Names of the cells of these variants and of the teachers they need."""
    for variant in variants:
        if variant not in plan.recipe.variants:
            raise unknown("variant", variant, plan.recipe.variants)
    names = {cell.name for cell in plan.cells.values() if cell.variant in variants}
    for cell in reversed(plan.cells.values()):  # students come after their teachers
        if cell.name in names and cell.teacher:
            names.add(cell.teacher)
    return names


# ------------------------------------------------------------------------------------------------ parts


def _split_overrides(recipe: StudyRecipe, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    evaluation, shared = dict(recipe.eval), {}
    for key, value in overrides.items():
        for factor, keys in recipe.factors.items():
            if any(covers(k, key) or covers(key, k) for k in keys):
                raise UserError(
                    f"{key} belongs to the factor '{factor}', which the variants set; change it in {recipe.path}."
                )
        if key in ("seed", "name"):
            raise UserError(f"{key} is set by the study for each cell; use --seeds for seeds.")
        head, dot, rest = key.partition(".")
        if head != "eval" or not dot:
            shared[key] = value
        elif rest in evaluation:
            evaluation[rest] = value
        else:
            raise unknown("evaluation key", key, [f"eval.{k}" for k in evaluation])
    return shared, checked_eval(evaluation)


def _make_cell(
    recipe: StudyRecipe,
    variant: Variant,
    seed: int,
    shared: Mapping[str, Any],
    cells: Mapping[str, Cell],
    root: Path,
    resolve: Resolve,
) -> Cell:
    overrides = {**shared, **variant.changes, "seed": seed, "name": "run", "eval.tasks": []}
    teacher = cells[cell_name(variant.teacher, seed)] if variant.teacher else None
    if teacher:
        overrides |= {"teacher.mode": "frozen", "teacher.source": f"run:{root / 'cells' / teacher.name / 'run'}"}
    try:
        config = resolve(recipe.base, overrides)
    except UserError as error:
        raise UserError(f"{recipe.path}, variant '{variant.name}': {error}") from error
    values = content(config, teacher.address if teacher else None)
    return Cell(
        variant=variant.name,
        seed=seed,
        base=recipe.base,
        overrides=overrides,
        content=values,
        address=address(values),
        size=config.views.global_size,
        teacher=teacher.name if teacher else None,
    )


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    absent = object()
    return sorted(k for k in one.keys() | two.keys() if one.get(k, absent) != two.get(k, absent))


def _by_factor(factors: Mapping[str, Sequence[str]], keys: Sequence[str]) -> dict[str, list[str]]:
    """Factor -> its keys among `keys`; keys of no factor are under the empty name."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        factor = next((f for f, own in factors.items() if any(covers(k, key) for k in own)), "")
        groups.setdefault(factor, []).append(key)
    return groups


def _refuse_extra(recipe: StudyRecipe, variant: Variant, plain: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    extra = _by_factor(recipe.factors, _differing(plain, values)).get("")
    if extra:
        shown = ", ".join(f"{k} ({plain.get(k)!r} -> {values.get(k)!r})" for k in extra)
        raise UserError(
            f"{recipe.path}: variant '{variant.name}' changes {shown}, which no declared factor covers. "
            f"Factors: {', '.join(recipe.factors)}. Declare the factor, or move the key to the study's `set`."
        )


def _refuse_twins(plan: Plan) -> None:
    seen: dict[str, str] = {}
    for cell in plan.cells.values():
        if cell.address in seen:
            raise UserError(
                f"{plan.recipe.path}: '{cell.name}' and '{seen[cell.address]}' are the same run; remove one of them."
            )
        seen[cell.address] = cell.name


def _check_pair(plan: Plan, pair: Pair) -> None:
    path, factors = plan.recipe.path, plan.recipe.factors
    for name in (pair.first, pair.second):
        if is_average(name) and not averages_trunk(plan.cells[cell_name(plain(name), plan.seeds[0])].content):
            raise UserError(
                f"{path}: {name} is no averaged trunk, as only teacher.mode ema with a patch or CLS loss keeps one; "
                f"compare {plain(name)}."
            )
    for factor in pair.factors or ():
        if factor not in factors:
            raise unknown(f"factor in compare of {path}", factor, factors)
    differing = plan.differing_factors(pair.first, pair.second)
    if not differing:
        raise UserError(f"{path}: {pair.first} and {pair.second} differ in no factor; compare two different variants.")
    if pair.factors is None and len(differing) != 1:
        raise UserError(
            f"{path}: {pair.first} and {pair.second} differ in {len(differing)} factors ({', '.join(differing)}); "
            f"compare variants that differ in one, or list them: "
            f"{{pair: [{pair.first}, {pair.second}], factors: [{', '.join(differing)}]}}."
        )
    if pair.factors is not None and set(pair.factors) != set(differing):
        raise UserError(
            f"{path}: {pair.first} and {pair.second} differ in {', '.join(differing)}, "
            f"but the comparison lists {', '.join(pair.factors)}; list exactly those that differ."
        )
