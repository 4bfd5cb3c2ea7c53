"""The learning-rate check: every arm for a short while at half its rate, at its own rate, and at twice its rate.

A comparison is fair only if no arm's rate suits it worse than another's. The check is itself a study, named NAME_lr:
its cells are addressed, kept and continued like all others. lr.json beside the checked study's results has the scores,
one a factor (null: not finished), which the report shows:

    {"study": "bridge", "seed": 0, "fraction": 0.25, "factors": [0.5, 1.0, 2.0], "hardware": "AMD EPYC in bf16",
     "arms": {"teacher": {"lr": 0.001, "steps": 750, "teacher": null,
                          "scores": {"linear_patch/accuracy": [0.61, 0.64, null]}}}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.study.columns import SCORES, Column, show
from distill.study.plan import Plan, Resolve, cell_name, make_plan
from distill.study.recipe import StudyRecipe, Variant, covers
from distill.study.results import Tree, hardware_of, value_of
from distill.study.store import read_json, write_json

RATES = "lr.json"
FACTORS = {"half": 0.5, "same": 1.0, "double": 2.0}  # of the arm's own rate, by the ending of the trial's name
FRACTION = 0.25  # of the arm's steps
LR, STEPS = "optim.lr", "train.steps"
JUDGES = ("linear_patch/accuracy", "zeroshot_seg/miou_final", "zeroshot_seg/miou_value")
BEST = "★"


def rate_plan(plan: Plan, shared: Mapping[str, Any], resolve: Resolve, fraction: float = FRACTION) -> Plan:
    """The study that checks the rates of `plan`, with its first seed; `shared`: keys that were set for every variant.

    It holds the teachers as they are in `plan`, and for every variant three trials of `fraction` of its steps.
    """
    if not 0 < fraction < 1:
        raise UserError(f"--fraction {fraction:g} is no part of an arm's steps; give more than 0 and less than 1.")
    recipe = _recipe(plan, shared, fraction)
    return make_plan(recipe, resolve, {}, recipe.seeds, plan.root.parent, f"{plan.root.name}_lr")


def _recipe(plan: Plan, shared: Mapping[str, Any], fraction: float) -> StudyRecipe:
    recipe, seed = plan.recipe, plan.seeds[0]
    teachers = {v.teacher for v in recipe.variants.values() if v.teacher}
    variants = {name: variant for name, variant in recipe.variants.items() if name in teachers}
    for name, variant in recipe.variants.items():
        content = plan.cells[cell_name(name, seed)].content
        steps = max(1, round(fraction * content[STEPS]))
        for ending, factor in FACTORS.items():
            changes = {**variant.changes, LR: factor * content[LR], STEPS: steps}
            title = f"{variant.title}, {factor:g} x its rate"
            variants[f"{name}_{ending}"] = Variant(f"{name}_{ending}", title, changes, variant.teacher, trial=True)
    factors = dict(recipe.factors)
    for key in (LR, STEPS):
        if not any(covers(k, key) for keys in factors.values() for k in keys):
            factors[key] = (key,)
    return replace(
        recipe,
        title=f"Learning rates: {recipe.title}",
        changes={**recipe.changes, **shared},
        factors=factors,
        seeds=(seed,),
        eval=plan.eval,
        variants=variants,
        compare=(),
        claims=(),
        paper=None,
        checks=plan.root.name,
    )


def trials(variants: Sequence[str]) -> list[str]:
    """Names of the trials of these variants."""
    return [f"{variant}_{ending}" for variant in variants for ending in FACTORS]


def rate_tree(plan: Plan, results: Tree, fraction: float) -> Tree:
    """The content of lr.json: `plan` is the study that is checked, `results` those of its trials."""
    rows = {row["variant"]: row for row in results["rows"]}
    tried = [rows[trial] for trial in trials(list(plan.recipe.variants)) if trial in rows]
    arms = {}
    for name, variant in plan.recipe.variants.items():
        content = plan.cells[cell_name(name, plan.seeds[0])].content
        own = [rows.get(trial) for trial in trials([name])]
        scores = {key: [value_of(row, key) if row else None for row in own] for key in JUDGES}
        arms[name] = {
            "lr": content[LR],
            "steps": max(1, round(fraction * content[STEPS])),
            "teacher": variant.teacher,
            "scores": {key: values for key, values in scores.items() if any(v is not None for v in values)},
        }
    return {
        "study": plan.root.name,
        "seed": plan.seeds[0],
        "fraction": fraction,
        "factors": list(FACTORS.values()),
        "hardware": hardware_of(tried),
        "arms": arms,
    }


def save_rates(plan: Plan, fraction: float, place: Path, results: Tree) -> Tree:
    """Write lr.json beside the checked study's results in `place`, a folder of studies; returns its content."""
    tree = rate_tree(plan, results, fraction)
    write_json(place / plan.root.name / RATES, tree)
    return tree


def load_rates(folder: Path) -> Tree | None:
    """The check of the study in `folder`; None where there was none."""
    return read_json(folder / RATES)


# ------------------------------------------------------------------------------------------------ views


def rates_text(tree: Tree) -> str:
    """What the table below it shows, and which arms are not in it."""
    untried = [name for name, arm in tree["arms"].items() if not arm["scores"]]
    taught = any(arm.get("teacher") for arm in tree["arms"].values() if arm["scores"])
    where = [f"seed {tree['seed']}", *([tree["hardware"]] if tree.get("hardware") else [])]  # older files have none
    return (
        f"Arms for {tree['fraction']:.0%} of their steps at half their learning rate, at their own and at twice it "
        f"({', '.join(where)})"
        + ("; students learn from the fully trained teacher" if taught else "")
        + f". {BEST}: the best of the three."
        + (f" Not tried: {', '.join(untried)}." if untried else "")
    )


def rate_heads(tree: Tree) -> list[str]:
    """`variant`, `rate`, and three headings a metric."""
    return ["variant", "rate", *(f"{c.short}, x{f:g}" for c in rate_columns(tree) for f in tree["factors"])]


def rate_rows(tree: Tree) -> list[list[str]]:
    """A row for each arm that was tried: its name, its rate, and its scores under each heading, the best one marked."""
    columns = rate_columns(tree)
    return [
        [name, f"{arm['lr']:g}", *(text for column in columns for text in _marked(column, arm, len(tree["factors"])))]
        for name, arm in tree["arms"].items()
        if arm["scores"]
    ]


def rate_columns(tree: Tree) -> list[Column]:
    """The scores that some trial has."""
    had = {key for arm in tree["arms"].values() for key in arm["scores"]}
    return [column for column in SCORES if column.key in had]


def _marked(column: Column, arm: Mapping[str, Any], count: int) -> list[str]:
    values: list[float | None] = arm["scores"].get(column.key, [None] * count)
    known = [v for v in values if v is not None]
    whole = len(known) == len(values)  # of fewer than all rates none is called the best
    return [show(column, v) + (f" {BEST}" if whole and v == max(known) else "") for v in values]
