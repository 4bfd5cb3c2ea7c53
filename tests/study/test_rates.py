"""The learning-rate check."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main
from distill.errors import UserError
from distill.study.display import CellState, Display
from distill.study.markdown import study_part
from distill.study.rates import load_rates, rate_rows, rates_text
from distill.study.report import build_report
from distill.study.results import load_studies
from distill.study.run import StudyResult

Play = Callable[..., StudyResult]


def spec(result: StudyResult, cell: str) -> dict[str, Any]:
    return json.loads((result.folder / "cells" / cell / "spec.json").read_text())


def test_every_arm_is_tried_at_three_rates_and_students_learn_from_the_full_teacher(play: Play) -> None:
    full = play(only=["ibot"])
    rate = spec(full, "ibot-s0")["content"]["optim.lr"]
    result = play(lr_check=0.25)
    assert result.folder.name == "trio_lr"
    assert {row["variant"] for row in result.results["rows"]} == {
        "ibot",
        *(f"{v}_{r}" for v in ("ibot", "ibotpp", "unmasked") for r in ("half", "same", "double")),
    }
    for ending, factor in (("half", 0.5), ("same", 1), ("double", 2)):
        content = spec(result, f"ibotpp_{ending}-s0")["content"]
        assert (content["optim.lr"], content["train.steps"]) == (factor * rate, 10)
        assert content["objective.patch.tokens"] == "all"
    assert spec(result, "unmasked_half-s0")["teacher"] == "ibot-s0"
    assert not (result.folder / "cells" / "ibot-s0" / "cell.log").exists()  # shared with the study's


def test_the_check_goes_on_where_it_stopped_and_tells_its_scores(play: Play, tmp_path: Path) -> None:
    first = play(lr_check=0.25, only=["ibotpp"])
    assert first.rates is not None
    assert first.rates["arms"]["ibot"]["scores"] == {}
    result = play(lr_check=0.25)
    assert result.rates == load_rates(tmp_path / "runs" / "trio")
    assert (result.folder / "cells" / "ibotpp_same-s0" / "cell.log").read_text().count("started") == 1
    rows = {row["variant"]: row["metrics"]["linear_patch/accuracy"] for row in result.results["rows"]}
    scores = result.rates["arms"]["ibotpp"]["scores"]["linear_patch/accuracy"]
    assert scores == [rows["ibotpp_half"], rows["ibotpp_same"], rows["ibotpp_double"]]


def test_the_best_of_three_is_marked_and_none_of_fewer() -> None:
    arms = {
        "whole": {"lr": 0.001, "steps": 5, "scores": {"linear_patch/accuracy": [0.5, 0.7, 0.6]}},
        "part": {"lr": 0.002, "steps": 5, "scores": {"linear_patch/accuracy": [0.5, None, 0.6]}},
        "untried": {"lr": 0.002, "steps": 5, "scores": {}},
    }
    tree = {"study": "x", "seed": 0, "fraction": 0.25, "factors": [0.5, 1.0, 2.0], "arms": arms}
    assert rate_rows(tree) == [["whole", "0.001", "50.0", "70.0 ★", "60.0"], ["part", "0.002", "50.0", "–", "60.0"]]
    assert rates_text(tree).endswith("Not tried: untried.")
    del arms["untried"]
    assert "Not tried" not in rates_text(tree)
    assert "twice it (seed 0). ★" in rates_text(tree)  # a file of before there were hardware and teachers in it


def test_hardware_is_said_and_the_teacher_where_a_student_was_tried(play: Play, tmp_path: Path) -> None:
    rates = play(lr_check=0.25, only=["ibotpp"]).rates
    assert rates is not None
    assert rates["hardware"] == "Test CPU"
    assert "(seed 0, Test CPU). ★" in rates_text(rates)
    rates = play(lr_check=0.25).rates or {}
    assert "(seed 0, Test CPU); students learn from the fully trained teacher. ★" in rates_text(rates)


def test_the_check_is_kept_and_shown_with_its_study_alone(play: Play, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    play(lr_check=0.25, keep=kept)
    trial = json.loads((kept / "trio_lr" / "cells" / "ibot_half-s0" / "cell.json").read_text())
    assert trial["curves"] == {}
    assert "--keep" not in json.loads((kept / "trio_lr" / "results.json").read_text())["command"]
    assert json.loads((kept / "trio_lr" / "cells" / "ibot-s0" / "cell.json").read_text())["curves"]
    play(keep=kept)
    studies = load_studies(kept)
    assert list(studies) == ["trio"]
    page = build_report(studies["trio"], kept / "trio")
    assert "Learning rates" in page
    assert '<th colspan="3" class="group">probe</th>' in page
    assert "<th>x 0.5</th><th>x 1</th><th>x 2</th>" in page
    assert "| ibotpp | " in study_part(studies["trio"], load_rates(kept / "trio"))
    assert "Learning rates" not in study_part(studies["trio"])


def test_the_kept_check_has_all_kept_trials_whatever_ran_here(play: Play, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    play(lr_check=0.25, keep=kept, only=["ibotpp"])
    result = play(lr_check=0.25, keep=kept, only=["ibot"], runs=tmp_path / "elsewhere")
    assert result.rates is not None
    here, there = result.rates["arms"], (load_rates(kept / "trio") or {})["arms"]
    assert [name for name, arm in here.items() if arm["scores"]] == ["ibot"]
    assert [name for name, arm in there.items() if arm["scores"]] == ["ibot", "ibotpp"]


def test_the_check_is_kept_after_each_trial(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Display.update
    seen: list[int] = []

    def look(display: Display, states: Sequence[CellState]) -> None:
        shown(display, states)
        arms = (load_rates(tmp_path / "kept" / "trio") or {"arms": {}})["arms"]
        scores = [arm["scores"].get("linear_patch/accuracy", []) for arm in arms.values()]
        seen.append(sum(score is not None for values in scores for score in values))

    monkeypatch.setattr(Display, "update", look)
    play(lr_check=0.25, keep=tmp_path / "kept", only=["ibot"], parallel=1)
    assert sorted(set(seen)) == [0, 1, 2, 3]  # a study that is killed leaves those it had


def test_settings_for_all_variants_hold_in_the_check(play: Play) -> None:
    overrides = {"train.accelerator": "cpu", "train.steps": 80, "eval.samples": 32}
    result = play(lr_check=0.5, overrides=overrides)
    trial = spec(result, "ibot_same-s0")
    assert (trial["content"]["train.steps"], trial["eval"]["samples"]) == (40, 32)


def test_a_trial_may_be_one_of_the_teachers(edit: Callable[[str, str], Path], play: Play) -> None:
    text = "  longer: {title: twice as long, set: {train.steps: 80}}\ncompare:\n"
    path = edit("compare:\n", text)
    path.write_text(path.read_text().replace("teacher: [teacher.mode", "length: [train.steps], teacher: [teacher.mode"))
    assert play(lr_check=0.5).complete


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_trial_is_a_part_of_the_training(play: Play, fraction: float) -> None:
    with pytest.raises(UserError, match=r"--fraction .* more than 0 and less than 1"):
        play(lr_check=fraction)


def test_a_fraction_needs_the_check(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(recipe), "--fraction", "0.5"]) == 2
    assert "--lr-check" in capsys.readouterr().err
