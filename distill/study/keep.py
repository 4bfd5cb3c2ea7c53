"""Finished cells in a form to commit: without weights or a machine's paths, and small.

FOLDER/<study>/
    results.json, claims.json, lr.json
    cells/<variant>-s<seed>/
        cell.json               thinned curves, in the first seed only; or a reference to another study's cell
        pictures/KIND.webp      of the first seed: the test images side by side, one strip a kind
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from distill.study.address import placeless
from distill.study.curves import Curve, shorten
from distill.study.plan import Cell, Plan
from distill.study.results import Tree, collect, save
from distill.study.store import MANIFEST, PICTURES, RESULT, SAME, index_results, is_done, read_json, write_json

POINTS = 40  # of a kept curve
DIGITS = 4  # significant, of its values
QUALITY = 70  # of the pictures
MACHINE = ("device", "precision", "cores", "world", "python", "packages")  # kept of a run's environment


class Keeper:
    """Called with each finished cell of `plan`; keeps it in `folder` and writes the results of `whole` anew.

    `whole` is the plan with every seed that the folder's results hold. `command` is what a reader runs,
    `overrides` are those of the plans. `check` writes lr.json to a folder of studies, from the results of a
    learning-rate check's trials; it is called after each of them.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        whole: Plan,
        command: str,
        overrides: Mapping[str, Any],
        check: Callable[[Path, Tree], Tree] | None = None,
    ):
        self.folder, self.plan, self.command, self.overrides, self.check = folder, plan, command, overrides, check
        self.whole = replace(whole, root=folder / plan.root.name)

    def __call__(self, cell: Cell) -> None:
        trial = self.plan.recipe.variants[cell.variant].trial
        first = cell.seed == min(self.whole.seeds) and not trial
        keep_cell(self.plan.folder(cell), self.whole.folder(cell), cell, self.plan.eval, first)
        results = collect(self.whole, command=self.command, overrides=self.overrides)
        save(placeless(small_results(results)), self.whole.root)
        if trial and self.check:
            self.check(self.folder, results)


def keep_cell(source: Path, target: Path, cell: Cell, evaluation: Mapping[str, Any], first: bool) -> None:
    """Copy the finished cell in `source`; with curves and pictures if it is of the `first` seed.

    What is kept already stays; of a run that another study keeps there is only a reference.
    """
    result, had = read_json(source / RESULT), read_json(target / RESULT)
    assert result is not None
    if had is not None and had.get("finished") == result["finished"] and is_done(had, cell, evaluation):
        return
    root = target.parents[2]
    other = _kept_elsewhere(root, target, result, cell, evaluation)
    if target.exists():
        shutil.rmtree(target)
    if other is None or (had is not None and had.get("address") == cell.address and SAME not in had):
        write_json(target / RESULT, small_cell(result, cell, first), indent=None)
        if first:
            keep_pictures(source / PICTURES, target / PICTURES)
        return
    about = {"variant": cell.variant, "seed": cell.seed, "teacher": cell.teacher, "address": cell.address}
    write_json(target / RESULT, {**about, SAME: other.relative_to(root).as_posix()})


def _kept_elsewhere(
    root: Path, target: Path, result: Mapping[str, Any], cell: Cell, evaluation: Mapping[str, Any]
) -> Path | None:
    """Where another study keeps this very run: one of the same recipe can be older, and is another network."""
    for folder in index_results(root).get(cell.address, []):
        had = read_json(folder / RESULT) or {}
        if folder != target and had.get("finished") == result["finished"] and is_done(had, cell, evaluation):
            return folder
    return None


def small_cell(result: Mapping[str, Any], cell: Cell, curves: bool) -> dict[str, Any]:
    """What is kept of cell.json."""
    kept = {term: thin(curve) for term, curve in result["curves"].items()} if curves else {}
    mine = {"variant": cell.variant, "seed": cell.seed, "teacher": cell.teacher, "curves": kept, "shared": None}
    return dict(placeless({**result, **mine, "environment": small_environment(result["environment"])}))


def small_environment(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Hardware and versions, without what only that machine knows."""
    return {key: environment[key] for key in MACHINE if key in environment}


def small_results(results: dict[str, Any]) -> dict[str, Any]:
    """What is kept of results.json: all of it but machines, and where weights were shared."""
    rows = [{**r, "environment": small_environment(r["environment"]), "shared": None} for r in results["rows"]]
    return {**results, "rows": rows}


def thin(curve: Curve) -> Curve:
    """A curve of at most POINTS means with DIGITS significant digits."""
    rows = [{"step": step, "value": value} for step, value in zip(curve["step"], curve["value"])]
    short = shorten(rows, "value", POINTS)
    return {"step": short["step"], "value": [float(f"{value:.{DIGITS}g}") for value in short["value"]]}


def keep_pictures(source: Path, target: Path) -> None:
    """One strip a kind, from `KIND_0.png`, `KIND_1.png`, ...; strips are copied as they are."""
    manifest = read_json(source / MANIFEST)
    if manifest is None:
        return
    target.mkdir(parents=True, exist_ok=True)
    for kind in ("image", "truth", *manifest["panels"]):
        if (source / f"{kind}.webp").exists():
            shutil.copyfile(source / f"{kind}.webp", target / f"{kind}.webp")
            continue
        tiles = [source / f"{kind}_{number}.png" for number in range(manifest["images"])]
        if all(tile.exists() for tile in tiles):
            _strip(tiles).save(target / f"{kind}.webp", quality=QUALITY, method=6)
    write_json(target / MANIFEST, manifest)


def _strip(tiles: list[Path]) -> Image.Image:
    """Pictures of one height side by side."""
    images = [Image.open(tile).convert("RGB") for tile in tiles]
    strip = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width
    return strip
