"""results.json: one row a variant and seed, and everything needed to rebuild the tables and the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.study.averages import metric_of, rows_of
from distill.study.claims import Claim, Finding, judge
from distill.study.columns import CHANCE, COLUMNS, Column
from distill.study.plan import Plan
from distill.study.statistics import Interval, mean_interval, paired_difference
from distill.study.store import is_done, read_json, read_result, write_json
from distill.study.unequal import unequal

FORMAT = 1
RESULTS, CLAIMS, REPORT = "results.json", "claims.json", "report.html"
Tree = dict[str, Any]


def collect(
    plan: Plan,
    failed: Mapping[str, str] | None = None,
    command: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> Tree:
    """Results of the cells that are done; `failed` maps cell names to log tails, `overrides` are those of `plan`."""
    recipe = plan.recipe
    rows, missing = _rows(plan)
    contents = [cell.content for cell in plan.cells.values()]
    archs = dict.fromkeys(str(content["students.0.arch"]) for content in contents)
    size = next(iter(plan.cells.values())).size
    return {
        "format": FORMAT,
        "study": plan.root.name,
        "folder": str(plan.root),
        "title": recipe.title,
        "purpose": recipe.header.purpose,
        "recipe": recipe.path,
        "base": recipe.base,
        "steps": contents[0]["train.steps"],
        "batch": contents[0]["train.batch"],
        "set": recipe.changes,
        "factors": {k: list(v) for k, v in recipe.factors.items()},
        "eval": plan.eval,
        "seeds": list(plan.seeds),
        "variants": {v.name: {"title": v.title, "teacher": v.teacher} for v in recipe.variants.values()},
        "compare": [
            {"first": p.first, "second": p.second, "factors": plan.differing_factors(p.first, p.second)}
            for p in recipe.compare
        ],
        "claims": [asdict(claim) for claim in recipe.claims],
        "paper": recipe.paper,
        "scale": recipe.scale,
        "model": f"{' and '.join(archs)}, {size} px",
        "checks": recipe.checks,
        "rows": rows,
        "missing": missing,
        "failed": dict(failed or {}),
        "command": command,
        "overrides": dict(overrides or {}),
    }


def _rows(plan: Plan) -> tuple[list[Tree], list[str]]:
    """A row a finished cell, and the names of the others."""
    rows, missing = [], []
    for cell in plan.cells.values():
        result = read_result(plan.folder(cell))
        if result is None or not is_done(result, cell, plan.eval):
            missing.append(cell.name)
            continue
        kept = ("metrics", "environment", "code", "address", "weights", "taught_by", "finished", "shared")
        rows.append(
            {
                "variant": cell.variant,
                "seed": cell.seed,
                "teacher": cell.teacher,
                "folder": f"cells/{cell.name}",
                "switches": plan.switches(cell),
                "cost": whole_cost(result["cost"]),
                **{key: result.get(key) for key in kept},
            }
        )
    return rows, missing


def whole_cost(cost: Mapping[str, float]) -> dict[str, float]:
    """What a cell took, with all parameters that its training held: trained, averaged and frozen."""
    return {**cost, "held": sum(cost.get(key, 0) for key in ("trained", "averaged", "frozen"))}


def save(results: Tree, folder: Path) -> None:
    """Write results.json and, where the study has claims, claims.json."""
    write_json(folder / RESULTS, results)
    if results["claims"]:
        write_json(folder / CLAIMS, [finding.as_dict() for finding in findings(results)])


def load_results(folder: Path) -> Tree:
    """The results in a study's folder; a `UserError` when there are none or they have another format."""
    results = read_json(folder / RESULTS)
    if results is None:
        raise UserError(f"There is no readable {folder / RESULTS}; run the study first, without --report.")
    if results.get("format") != FORMAT:
        raise UserError(f"{folder / RESULTS} has format {results.get('format')}, this version reads {FORMAT}.")
    return results


def holds_studies(folder: Path) -> bool:
    """Whether a folder holds the results of several studies, in folders of their own, rather than of one."""
    return not (folder / RESULTS).exists() and any(folder.glob(f"*/{RESULTS}"))


def load_studies(folder: Path) -> dict[str, Tree]:
    """Results by folder name, of every study in `folder` but learning-rate checks; a `UserError` for another format."""
    found = {path.parent.name: load_results(path.parent) for path in sorted(folder.glob(f"*/{RESULTS}"))}
    return {name: results for name, results in found.items() if not results.get("checks")}


# ------------------------------------------------------------------------------------------------ views


def scale_of(results: Tree) -> str:
    """`small: S/16, 128 px`; a study as its recipe is written has the scale `default`."""
    words = [results.get("scale") or "default", results.get("model", "")]
    return ": ".join(word for word in words if word)


def hardware_of(rows: Iterable[Tree]) -> str:
    """The devices that made the rows, each with what it computed in: `AMD EPYC in bf16`."""
    return "; ".join(sorted({device_of(row["environment"]) for row in rows}))


def device_of(environment: Mapping[str, Any]) -> str:
    """`AMD EPYC in bf16`."""
    words = [str(environment.get("device", "unknown")), environment.get("precision")]
    return " in ".join(word for word in words if word)


def basis(results: Tree, name: str) -> tuple[str, str]:
    """What a row of the tables stands on: how many seeds, and the hardware with its precision."""
    rows = rows_of(results, name)
    return str(len(rows)), hardware_of(rows)


def value_of(row: Mapping[str, Any], key: str, otherwise: str | None = None) -> float | None:
    """A row's metric, or its cost for keys that start with `cost/`; None where it was not measured."""
    place = row["cost"] if key.startswith("cost/") else row["metrics"]
    value = place.get(key.removeprefix("cost/"))
    return value_of(row, otherwise) if value is None and otherwise else value


def by_seed(results: Tree, variant: str, key: str, otherwise: str | None = None) -> dict[int, float]:
    """Seed -> value of one variant, or of its averaged trunk (`VARIANT.average`)."""
    rows = rows_of(results, variant)
    key, otherwise = metric_of(variant, key), otherwise and metric_of(variant, otherwise)
    return {row["seed"]: value for row in rows if (value := value_of(row, key, otherwise)) is not None}


def mean_of(results: Tree, variant: str, column: Column) -> Interval | None:
    """Mean and interval over seeds; None where no seed has the value."""
    values = list(by_seed(results, variant, column.key, column.otherwise).values())
    return mean_interval(values) if values else None


def difference(results: Tree, first: str, second: str, column: Column) -> Interval | None:
    """Mean paired difference second - first, with its interval over the seeds that both have."""
    one, two = (by_seed(results, v, column.key, column.otherwise) for v in (first, second))
    return paired_difference(one, two)


def measured(results: Tree, columns: Sequence[Column] = COLUMNS) -> list[Column]:
    """The columns that at least one row has."""
    return [c for c in columns if any(value_of(row, c.key, c.otherwise) is not None for row in results["rows"])]


def chance(results: Tree, column: Column) -> float | None:
    """What guessing gets in a column, from the first row that says; None where that was not measured."""
    values = [row["metrics"].get(CHANCE.get(column.key, "")) for row in results["rows"]]
    return next((value for value in values if value is not None), None)


def findings(results: Tree) -> list[Finding]:
    """The study's claims, judged on its rows."""
    claims = [Claim(**tree) for tree in results["claims"]]
    variants = {*results["variants"], *(name for c in claims for name in (c.first, c.second) if name)}
    scores = {c.metric: {v: by_seed(results, v, c.metric) for v in variants} for c in claims}
    found = []
    for f in judge(claims, scores):
        nowhere = results["rows"] and not any(scores[f.claim.metric].values())
        reason = f"no run has the metric {f.claim.metric}" if nowhere else f.reason
        flags: dict[str, Any] = {**unequal(results, f.claim.first, f.claim.second)}
        found.append(replace(f, reason=reason, **flags))
    return found
