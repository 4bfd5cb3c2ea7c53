"""A teacher's and a student's cell for real: two steps of the smallest model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.evals.run import evaluate
from distill.study.averages import PREFIX
from distill.study.cell import cell_cost, main, teacher_images
from distill.study.code import code_digest
from distill.study.columns import CHANCE, CLAIMED, COLUMNS
from distill.study.display import Display
from distill.study.results import value_of, whole_cost
from distill.study.run import plan_study
from distill.study.runner import Runner
from distill.study.store import is_done, write_json
from teachers.sources import open_teacher

Cells = dict[str, dict[str, Any]]  # content of cell.json by variant, and `place`, the cell's folder

BASE = """\
data: {scenes: {size: 32, count: 64}, workers: 0}
views: {global_size: 32, local_size: 16, locals: 1}
students: [{name: pupil, arch: tiny/8, depth: 1}]
vision: {position_grid: 4}
text: {layers: 1, vocabulary: 64, context: 16}
heads: {prototypes: 16, hidden: 16, bottleneck: 8}
train: {steps: 2, batch: 8, accelerator: cpu, log_every: 1}
guard: {every: 0}
log: {tensorboard: false}
"""
STUDY = """\
study: pair
base: base.yaml
factors: {mask: mask, teacher: teacher, rate: optim.lr}
eval: {dataset: scenes, samples: 12, tasks: [zeroshot_seg, linear_patch, locality, knn, retrieval, depth]}
variants: {old: {}, young: {teacher: old, set: {mask.ratio: 0}}, averaged: {set: {teacher.mode: ema, optim.lr: 0.01}}}
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    folder = tmp_path_factory.mktemp("real")
    (folder / "base.yaml").write_text(BASE)
    (folder / "pair.yaml").write_text(STUDY)
    plan = plan_study(folder / "pair.yaml", runs=folder / "runs")
    runner = Runner(plan, Display(1), slots=1, threads=1)
    found = {}
    for cell in plan.cells.values():
        place = plan.folder(cell)
        write_json(place / "spec.json", runner.spec(cell))
        assert main(place / "spec.json") == 0
        result = json.loads((place / "cell.json").read_text())
        assert is_done(result, cell, plan.eval)
        found[cell.variant] = {**result, "place": place}
    return found


def test_what_the_machine_decided_is_recorded(cells: Cells) -> None:
    assert cells["old"]["content"]["train.precision"] == "auto"
    assert cells["old"]["environment"]["precision"] in ("fp32", "bf16")


def test_every_column_and_baseline_of_the_tables_is_measured(cells: Cells) -> None:
    row = {**cells["old"], "cost": whole_cost(cells["old"]["cost"])}
    for column in [*COLUMNS, *CLAIMED]:
        assert value_of(row, column.key) is not None, column.key
    assert set(CHANCE.values()) <= cells["old"]["metrics"].keys()
    assert set(CHANCE) <= {column.key for column in COLUMNS}


def test_both_kinds_of_token_have_a_curve_and_a_student_without_mask_only_one(cells: Cells) -> None:
    assert {"patch_masked", "patch_visible", "cls", "contrastive", "loss"} <= cells["old"]["curves"].keys()
    assert "patch_visible" in cells["young"]["curves"]
    assert "patch_masked" not in cells["young"]["curves"]
    assert cells["old"]["curves"]["patch_visible"]["step"] == [1, 2]


def test_a_cell_says_whose_weights_taught_it(cells: Cells) -> None:
    assert len(cells["old"]["weights"]) == 64
    assert cells["old"]["taught_by"] is None
    assert cells["young"]["taught_by"] == cells["old"]["weights"] != cells["young"]["weights"]


def test_an_averaged_trunk_is_scored_beside_the_student(cells: Cells) -> None:
    own = {name: value for name, value in cells["averaged"]["metrics"].items() if not name.startswith(PREFIX)}
    average = {name: value for name, value in cells["averaged"]["metrics"].items() if name.startswith(PREFIX)}
    assert set(average) == {PREFIX + name for name in own if not name.startswith("train/")}
    share = "locality/global_share_final"
    assert average[PREFIX + share] != own[share]
    begun = open_teacher(f"run:{cells['averaged']['place'] / 'run'}").model
    scored = evaluate(begun, ["locality"], "scenes", samples=12, size=32)["locality"].metrics["global_share_final"]
    assert average[PREFIX + share] == pytest.approx(scored)
    for other in ("old", "young"):
        assert not [name for name in cells[other]["metrics"] if name.startswith(PREFIX)]


def test_costs(cells: Cells) -> None:
    old, young = cells["old"]["cost"], cells["young"]["cost"]
    assert (old["teacher_forwards"], young["teacher_forwards"]) == (0, 16)  # a frozen teacher sees 2 x 8 images
    assert old["averaged"] > 0
    assert young["averaged"] == 0
    assert young["parameters"] == old["parameters"] > 10_000
    assert old["train_seconds"] > 0
    assert old["peak_memory_mb"] > 50


def test_pictures_are_drawn(cells: Cells) -> None:
    folder: Path = cells["young"]["place"] / "pictures"
    manifest = json.loads((folder / "pictures.json").read_text())
    assert manifest["images"] == 6
    for kind in ("image", "truth", *manifest["panels"]):
        assert len(list(folder.glob(f"{kind}_*.png"))) == 6
    assert all(entry["colour"].startswith("#") for entry in manifest["legend"])


def test_a_finished_run_is_only_evaluated_again(cells: Cells) -> None:
    place: Path = cells["old"]["place"]
    newest = next((place / "run" / "checkpoints").glob("*.pt"))
    before = newest.stat().st_mtime_ns
    (place / "cell.json").unlink()
    assert main(place / "spec.json") == 0
    again = json.loads((place / "cell.json").read_text())
    assert newest.stat().st_mtime_ns == before
    assert again["metrics"] == cells["old"]["metrics"]


def test_bad_input_is_one_line_and_status_2(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    place: Path = cells["old"]["place"]
    spec = json.loads((place / "spec.json").read_text())
    write_json(place.parent / "bad" / "spec.json", {**spec, "eval": {**spec["eval"], "dataset": "no_such_set"}})
    assert main(place.parent / "bad" / "spec.json") == 2
    assert "no_such_set" in capsys.readouterr().err


def test_cost_of_a_run_that_logged_nothing(tmp_path: Path, cells: Cells) -> None:
    cost = cell_cost({"content": cells["old"]["content"], "threads": 2}, tmp_path, [])
    assert (cost["images_per_s"], cost["parameters"], cost["threads"]) == (0.0, 0, 2)


def test_code_digest_changes_with_what_trains_or_scores_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("distill.study.code.find_spec", lambda package: spec if package == "distill" else None)
    for name in ("training/loop.py", "study/report.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("old\n")
    before = code_digest()
    assert len(before) == 12
    (tmp_path / "study" / "report.py").write_text("new\n")
    assert code_digest() == before
    (tmp_path / "training" / "loop.py").write_text("new\n")
    assert code_digest() != before


def test_no_images_go_through_a_teacher_whose_targets_have_no_weight(tmp_path: Path, cells: Cells) -> None:
    content = {**cells["old"]["content"], "teacher.mode": "ema"}
    assert teacher_images(content, tmp_path) == content["train.steps"] * content["train.batch"]
    assert teacher_images({**content, "objective.patch.weight": 0.0, "objective.cls.weight": 0.0}, tmp_path) == 0
