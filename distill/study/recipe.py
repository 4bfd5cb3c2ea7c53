"""The study recipe: a base run, declared factors, variants that change nothing else, seeds, comparisons and claims.

    study: demo
    base: pretrain/ibot_scenes_tiny                 # the run recipe that every variant starts from
    set: {train.steps: 600}                         # applied to every variant
    factors: {tokens: [objective.patch.tokens], mask: [mask.ratio], teacher: [teacher.mode, teacher.source]}
    seeds: [0]
    eval: {dataset: scenes, samples: 512, tasks: [zeroshot_seg, knn]}
    variants:
      ibot:    {title: "iBOT", set: {objective.patch.tokens: masked}}
      student: {title: "distilled from it", from: ibot, teacher: ibot, set: {mask.ratio: 0}}
    compare: [{pair: [ibot, student], factors: [teacher, mask]}]    # [a, b] alone: exactly one factor differs
    claims: [{says: ..., source: Table 2, compare: [ibot, student], metric: zeroshot_seg/miou, expect: "+"}]

    scales:                                         # scale=small: another base, and what it changes; study demo_small
      small: {base: pretrain/scenes_small, eval: {dataset: "scenes:128"}, variants: {student: {train.steps: 9000}}}
    paper: {source: Table 2, columns: [PC59, ADE150], values: {ibot: [6.9, 0.3], student: [31.4, 20.0]}}

`from` inherits another variant's keys. `teacher: VARIANT` distils from that variant's finished cell of the same seed:
`teacher.mode` becomes frozen and `teacher.source` its run. `compare` and `claims` may say VARIANT.average for the
averaged trunk of a variant with `teacher.mode: ema`: that is what teaches. `paper`: published numbers, shown below the
scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from distill.config import recipes
from distill.config.entries import parse_scalar, read_yaml
from distill.config.fields import leaf_of
from distill.errors import UserError, unknown
from distill.study.averages import plain
from distill.study.claims import EXPECTATIONS, Claim
from distill.study.parts import checked_name, known, mapping, words
from distill.study.scales import scaled

KEYS = ("study", "title", "base", "set", "factors", "seeds", "eval", "variants", "compare", "claims", "paper", "scales")
VARIANT_KEYS = ("title", "from", "teacher", "set")
CLAIM_KEYS = ("says", "source", "after", "compare", "metric", "expect", "margin")
PAPER_KEYS = ("source", "columns", "values")
EVAL_KEYS = ("dataset", "samples", "tasks")
TASKS: tuple[str, ...] = leaf_of("eval.tasks").bounds["choices"]
MEASURED = (*TASKS, "train", "cost")  # what a claim's metric begins with
USUAL_TASKS = (
    "zeroshot_seg",
    "retrieval",
    "knn",
    "linear_patch",
    "depth",
)  # measured unless a recipe says otherwise: all cheap


@dataclass(frozen=True)
class Variant:
    """One arm. `changes` are dotted keys of the run recipe, inherited ones included; `teacher` is another variant.

    A `trial` is a short run of the learning-rate check: kept without curves and pictures.
    """

    name: str
    title: str
    changes: dict[str, Any]
    teacher: str | None = None
    trial: bool = False


@dataclass(frozen=True)
class Pair:
    """Two variants compared by seed; `factors` are those that may differ (None: any one)."""

    first: str
    second: str
    factors: tuple[str, ...] | None = None


@dataclass(frozen=True)
class StudyRecipe:
    """A parsed study; see the module's text for the meaning of each field."""

    study: str
    title: str
    header: recipes.Header  # purpose, what it reproduces, what it costs
    path: str  # for messages: a file, or the name of a shipped recipe
    base: str
    changes: dict[str, Any]
    factors: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    eval: dict[str, Any]
    variants: dict[str, Variant]
    compare: tuple[Pair, ...] = ()
    claims: tuple[Claim, ...] = ()
    paper: dict[str, Any] | None = None  # source, columns and variant -> values, as published
    scale: str | None = None  # one of the recipe's scales; None: as written
    checks: str | None = None  # the study whose learning rates this one checks


def read_study(name: str | Path, scale: str | None = None) -> StudyRecipe:
    """Parse a shipped study (`study/demo`, or `demo`) or a YAML file, at one of its scales.

    Raises a one-line `UserError` with the file, the value, what is allowed and the fix.
    """
    found = recipes.find(name)
    path = found.label
    for problem in read_yaml(found.text, path)[1]:  # the first; also for a key that is given twice
        raise UserError(str(problem))
    try:
        tree = parse_scalar(found.text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping with the keys {', '.join(KEYS)}.")
    if not any(key in tree for key in ("study", "factors", "variants")):
        kind = "is a list of evaluation tasks" if found.is_suite else "is the recipe of one run"
        use = f"distill eval MODEL {found.name}" if found.is_suite else f"distill run {found.name}"
        raise UserError(f"'{found.name}' {kind}, not a study; use: {use}. Studies: distill ls study.")
    known(path, "key", tree, KEYS)
    missing = [k for k in ("study", "base", "factors", "variants") if not tree.get(k)]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; a study needs at least study, base, factors and variants.")
    _check_shapes(path, tree)
    tree = scaled(path, tree, scale)
    variants = _variants(path, tree["variants"])
    pairs = tuple(_pair(path, item, variants) for item in tree.get("compare") or [])
    base = str(tree["base"])
    beside = found.path.parent / base if found.path is not None else None
    return StudyRecipe(
        study=checked_name(path, "study", tree["study"]),
        title=str(tree.get("title") or tree["study"]),
        header=recipes.header(found.text),
        path=path,
        base=str(beside) if beside is not None and beside.is_file() else base,
        changes=mapping(path, "set", tree.get("set")),
        factors=_factors(path, tree["factors"]),
        seeds=checked_seeds(tree.get("seeds", [0])),
        eval=_eval(path, tree.get("eval")),
        variants=variants,
        compare=pairs,
        claims=tuple(_claim(path, item, pairs, variants) for item in tree.get("claims") or []),
        paper=_paper(path, tree.get("paper"), variants),
        scale=scale,
    )


# ------------------------------------------------------------------------------------------------ parts


def _check_shapes(path: str, tree: Mapping[str, Any]) -> None:
    """Refuse variants, a variant or an evaluation that is no mapping, before a scale changes them."""
    variants, evaluation = tree["variants"], tree.get("eval")
    if not isinstance(variants, dict):
        raise UserError(f"{path}: variants is {variants!r}; it must map a variant's name to its title and changes.")
    for name, body in variants.items():
        if body is not None and not isinstance(body, dict):
            raise UserError(f"{path}: variant '{name}' is {body!r}; it must be a mapping of {', '.join(VARIANT_KEYS)}.")
    if evaluation is not None and not isinstance(evaluation, dict):
        raise UserError(f"{path}: eval is {evaluation!r}; it must be a mapping with the keys {', '.join(EVAL_KEYS)}.")


def _factors(path: str, value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: factors is {value!r}; it must map a factor's name to its keys, e.g. mask: [mask.ratio]."
        )
    factors = {str(k): words(path, f"factors.{k}", v) for k, v in value.items()}
    for (one, keys), (other, more) in combinations(factors.items(), 2):
        for key in keys:
            if any(covers(key, k) or covers(k, key) for k in more):
                raise UserError(f"{path}: {key} belongs to the factors '{one}' and '{other}'; a key has one factor.")
    return factors


def covers(key: str, other: str) -> bool:
    """Whether a factor's key names `other` itself or a whole branch above it (`teacher` covers `teacher.mode`)."""
    return other == key or other.startswith(key + ".")


def checked_seeds(value: Any) -> tuple[int, ...]:
    """A number of seeds (3 gives 0, 1, 2) or a list of them."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    values = list(range(value)) if whole else value
    if not isinstance(values, list | tuple) or not values or any(not isinstance(s, int) or s < 0 for s in values):
        raise UserError(f"seeds is {value!r}; give how many (3), at least 1, or a list of them ([0, 1, 2]).")
    if len(set(values)) != len(values):
        raise UserError(f"seeds {list(values)} repeats one; each seed counts once.")
    return tuple(values)


def _eval(path: str, value: Any) -> dict[str, Any]:
    given = value or {}
    known(path, "eval key", given, EVAL_KEYS)
    merged = {"dataset": "scenes", "samples": 512, "tasks": list(USUAL_TASKS), **given}
    return checked_eval(merged)


def checked_eval(value: Mapping[str, Any]) -> dict[str, Any]:
    """The eval block with its tasks and its number of samples checked."""
    samples = value["samples"]
    tasks = [value["tasks"]] if isinstance(value["tasks"], str) else value["tasks"]
    for task in tasks if isinstance(tasks, list | tuple) else [tasks]:
        if task not in TASKS:
            raise unknown("evaluation task", str(task), TASKS)
    if not isinstance(samples, int) or samples < 8:
        raise UserError(f"eval.samples is {samples!r}; it must be a whole number of images, at least 8.")
    return {"dataset": str(value["dataset"]), "samples": samples, "tasks": list(tasks)}


def _variants(path: str, value: Mapping[str, Any]) -> dict[str, Variant]:
    variants: dict[str, Variant] = {}
    for key, body in value.items():
        name = checked_name(path, "variant", key)
        body = body or {}
        known(path, f"key of variant '{name}'", body, VARIANT_KEYS)
        for link in ("from", "teacher"):
            if body.get(link) is not None and str(body[link]) not in variants:
                fix = f"'{link}' names a variant listed above '{name}'."
                raise unknown(f"variant in {path}", str(body[link]), variants, fix)
        parent = variants.get(body.get("from") or "")
        changes = {**(parent.changes if parent else {}), **mapping(path, f"variants.{name}.set", body.get("set"))}
        teacher = body.get("teacher", parent.teacher if parent else None)
        variants[name] = Variant(name, str(body.get("title") or name), changes, teacher)
    return variants


def _pair(path: str, item: Any, variants: dict[str, Variant]) -> Pair:
    body = {"pair": item} if isinstance(item, list) else item
    if not isinstance(body, dict) or not isinstance(body.get("pair"), list) or len(body["pair"]) != 2:
        raise UserError(
            f"{path}: compare has {item!r}; write [first, second] or {{pair: [first, second], factors: [...]}}."
        )
    known(path, "key of a comparison", body, ("pair", "factors"))
    for name in body["pair"]:
        if plain(str(name)) not in variants:
            raise unknown(f"variant in compare of {path}", str(name), variants)
    first, second = body["pair"]
    return Pair(first, second, words(path, "factors of a comparison", body.get("factors")) or None)


def _paper(path: str, value: Any, variants: dict[str, Variant]) -> dict[str, Any] | None:
    """The published numbers: `source`, `columns` (titles) and `values` (variant -> a number or null a column)."""
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != set(PAPER_KEYS) or not isinstance(value["values"], dict):
        raise UserError(f"{path}: paper is {value!r}; it must be a mapping with exactly {', '.join(PAPER_KEYS)}.")
    if not isinstance(value["columns"], list):
        raise UserError(f"{path}: paper.columns is {value['columns']!r}; it must be a list of titles.")
    for name, numbers in value["values"].items():
        if name not in variants:
            raise unknown(f"variant in paper of {path}", str(name), variants)
        if not isinstance(numbers, list) or len(numbers) != len(value["columns"]):
            raise UserError(
                f"{path}: paper has {numbers!r} for '{name}'; give {len(value['columns'])} values, one a column."
            )
    return {"source": str(value["source"]), "columns": list(map(str, value["columns"])), "values": value["values"]}


def _claim(path: str, item: Any, pairs: tuple[Pair, ...], variants: Mapping[str, Variant]) -> Claim:
    if not isinstance(item, dict):
        raise UserError(f"{path}: a claim is {item!r}; it must be a mapping with the keys {', '.join(CLAIM_KEYS)}.")
    known(path, "key of a claim", item, CLAIM_KEYS)
    missing = [k for k in ("says", "source", "compare", "metric", "expect") if k not in item]
    if missing:
        raise UserError(f"{path}: the claim '{item.get('says', '?')}' lacks {', '.join(missing)}.")
    first, second = _compared(path, item, pairs, variants)
    expect, margin, metric = str(item["expect"]), item.get("margin"), str(item["metric"])
    if metric.split("/")[0] not in MEASURED:
        raise unknown(f"task of the metric {metric} in a claim of {path}", metric.split("/")[0], MEASURED)
    if expect not in EXPECTATIONS:
        raise unknown("expectation of a claim", expect, EXPECTATIONS)
    if expect == "0" and margin is None:
        raise UserError(
            f"{path}: the claim '{item['says']}' expects no difference; give a margin in the metric's units."
        )
    if expect in ("+", "-") and margin is not None:
        raise UserError(
            f"{path}: the claim '{item['says']}' has a margin, which {expect} does not take; leave it out, or expect "
            "0, <= or >=."
        )
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float) or not margin >= 0):
        raise UserError(
            f"{path}: the claim '{item['says']}' has the margin {margin!r}; give a number of the metric's units, "
            "at least 0 (0.02 for two points of a share)."
        )
    return Claim(
        says=str(item["says"]),
        source=str(item["source"]),
        first=first,
        second=second,
        metric=metric,
        expect=expect,
        margin=None if margin is None else float(margin),
        after=None if item.get("after") is None else str(item["after"]),
    )


def _compared(
    path: str, item: Mapping[str, Any], pairs: tuple[Pair, ...], variants: Mapping[str, Variant]
) -> tuple[str | None, str]:
    """The claim's variants, in order; the first is None for a claim about one."""
    names = item["compare"]
    if isinstance(names, list) and len(names) == 1:
        if names[0] not in variants:
            raise unknown(f"variant in a claim of {path}", str(names[0]), variants)
        return None, names[0]
    if not isinstance(names, list) or tuple(names) not in {(p.first, p.second) for p in pairs}:
        raise UserError(
            f"{path}: the claim '{item['says']}' compares {names}, which is not in `compare`; add it there."
        )
    return names[0], names[1]
