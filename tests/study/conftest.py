"""A small study whose cells are played by fake_cell.py."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distill.study import runner
from distill.study.run import StudyResult, study

FAKE_CELL = Path(__file__).with_name("fake_cell.py")

BASE = """\
train: {steps: 40, batch: 16}
data: {scenes: {size: 64}}
views: {global_size: 64, local_size: 32}
students: [{name: student, arch: tiny/8}]
objective: {patch: {tokens: masked}}
"""
STUDY = """\
# A study for tests.
# reproduces: nothing
study: trio
title: A study for tests
base: base.yaml
factors: {tokens: [objective.patch.tokens], mask: [mask.ratio], teacher: [teacher.mode, teacher.source]}
seeds: [0]
eval: {dataset: scenes, samples: 16, tasks: [zeroshot_seg, knn]}
variants:
  ibot: {title: pretrained}
  ibotpp: {title: all tokens, set: {objective.patch.tokens: all}}
  unmasked: {title: distilled, teacher: ibot, set: {objective: {patch: {tokens: all}}, mask.ratio: 0}}
compare:
  - [ibot, ibotpp]
  - {pair: [ibot, unmasked], factors: [tokens, mask, teacher]}
claims:
  - {says: all tokens beat masked ones, source: Table 3, compare: [ibot, ibotpp],
     metric: zeroshot_seg/miou_final, expect: +}
"""


def write_recipe(folder: Path) -> Path:
    (folder / "base.yaml").write_text(BASE)
    path = folder / "trio.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The study's file, beside its base."""
    return write_recipe(tmp_path)


@pytest.fixture
def edit(recipe: Path) -> Callable[[str, str], Path]:
    """Replace one piece of the study's text."""

    def change(old: str, new: str) -> Path:
        text = recipe.read_text()
        assert text.count(old) == 1, f"{old!r} must occur once"
        recipe.write_text(text.replace(old, new))
        return recipe

    return change


def fake_command(spec: Path) -> list[str]:
    return [sys.executable, "-S", str(FAKE_CELL), str(spec)]


def fake_painter(spec: Path) -> list[str]:
    return [sys.executable, str(FAKE_CELL), str(spec)]  # with installed packages: it draws


@pytest.fixture
def play(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StudyResult]:
    """Run the study with fake cells and no report; the console's text is kept in `play.said`."""
    monkeypatch.setattr(runner, "POLL", 0.01)
    monkeypatch.setenv("FAKE_STEPS", "4")
    monkeypatch.setattr("distill.study.run.write_report", lambda results, folder: folder)

    def run(*args: Any, **options: Any) -> StudyResult:
        text = io.StringIO()
        options = {"runs": tmp_path / "runs", "parallel": 2, "overrides": {"train.accelerator": "cpu"}, **options}
        result = study(recipe, console=Console(file=text, width=120), command=fake_command, **options)
        run.said = text.getvalue()  # type: ignore[attr-defined]
        return result

    return run


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a study that was run for two seeds, with pictures and report."""
    folder = tmp_path_factory.mktemp("painted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "POLL", 0.01)
        patch.setenv("FAKE_STEPS", "1")
        patch.setenv("FAKE_PICTURES", "1")
        quiet = Console(file=io.StringIO())
        overrides = {"train.accelerator": "cpu"}
        runs = folder / "runs"
        study(write_recipe(folder), overrides, seeds=2, runs=runs, parallel=2, console=quiet, command=fake_painter)
    return folder / "runs" / "trio"
