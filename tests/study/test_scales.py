"""A study at another scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distill.check import check
from distill.errors import UserError
from distill.study.report import build_report
from distill.study.run import StudyResult, plan_study

Edit = Callable[[str, str], Path]
SCALES = """\
scales:
  small: {base: bigger.yaml, set: {optim.lr: 1e-4}, eval: {samples: 64}, variants: {unmasked: {mask.ratio: 0.25}}}
compare:
"""


@pytest.fixture
def scaled(edit: Edit, recipe: Path) -> Path:
    (recipe.parent / "bigger.yaml").write_text(
        (recipe.parent / "base.yaml").read_text().replace("steps: 40", "steps: 80")
    )
    return edit("compare:\n", SCALES)


def test_a_scale_changes_base_settings_evaluation_and_variants_and_nothing_else(scaled: Path) -> None:
    plain, small = plan_study(scaled), plan_study(scaled, {"scale": "small"})
    assert (plain.root.name, small.root.name) == ("trio", "trio_small")
    assert (plain.eval["samples"], small.eval["samples"]) == (16, 64)
    changed = {"train.steps": (40, 80), "optim.lr": (plain.cells["ibot-s0"].content["optim.lr"], 1e-4)}
    for name, more in (("ibot-s0", {}), ("unmasked-s0", {"mask.ratio": (0, 0.25)})):
        one, two = plain.cells[name].content, small.cells[name].content
        different = {key: (one[key], two[key]) for key in one if one[key] != two[key] and key != "teacher.source"}
        assert different == {**changed, **more}


def test_results_say_their_scale_in_every_table(scaled: Path, play: Callable[..., StudyResult]) -> None:
    result = play(overrides={"train.accelerator": "cpu", "scale": "small"}, only=["ibot"])
    assert result.folder.name == "trio_small"
    assert "scale=small" in result.results["command"]
    assert "small: tiny/8, 64 px" in build_report(result.results, result.folder)
    assert "default: tiny/8, 64 px" in build_report(play(only=["ibot"]).results, result.folder)


def test_the_learning_rate_check_has_the_scale_too(scaled: Path, play: Callable[..., StudyResult]) -> None:
    result = play(overrides={"train.accelerator": "cpu", "scale": "small"}, only=["ibot"], lr_check=0.25)
    assert result.folder.name == "trio_small_lr"
    assert result.rates is not None
    assert result.rates["arms"]["ibot"]["steps"] == 20


def test_check_knows_scales(scaled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(str(scaled), ["scale=small"]) == 0
    said = capsys.readouterr().out
    assert "bigger.yaml" in said
    assert "scale=small" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("old", "new", "scale", "words"),
    [
        ("small:", "small:", "smal", ["'smal'", "Did you mean 'small'", "Allowed: small"]),
        ("unmasked: {mask.ratio: 0.25}", "unmaskd: {}", None, ["'unmaskd'", "scale 'small'", "'unmasked'"]),
        ("base: bigger.yaml,", "bas: bigger.yaml,", None, ["'bas'", "Did you mean 'base'"]),
        ("scales:\n  small: {", "scales: [1]\nset: {", None, ["scales is [1]", "map a name"]),
    ],
)
def test_mistakes_are_named(scaled: Path, edit: Edit, old: str, new: str, scale: str | None, words: list[str]) -> None:
    edit(old, new)
    with pytest.raises(UserError) as error:
        plan_study(scaled, {"scale": scale} if scale else {})
    for word in words:
        assert word in str(error.value)


def test_a_study_without_scales_says_so(recipe: Path) -> None:
    with pytest.raises(UserError, match="has no scales"):
        plan_study(recipe, {"scale": "small"})


def test_the_deep_bridge_stands_on_the_cells_of_bigger_is_worse() -> None:
    deep, sizes = plan_study("study/bridge", {"scale": "deep"}), plan_study("study/bigger_is_worse")
    for one, other in (("teacher", "large"), ("unmasked", "same")):
        assert deep.cells[f"{one}-s0"].address == sizes.cells[f"{other}-s0"].address
    assert all(cell.content["students.0.depth"] == 8 for cell in deep.cells.values())
    assert deep.cells["cotrained-s0"].content["teacher.depth"] == 8
