from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.config.recipes import shipped
from distill.errors import UserError
from distill.study.address import address, same_content
from distill.study.columns import CLAIMED, COLUMNS
from distill.study.plan import Plan, select
from distill.study.recipe import read_study
from distill.study.run import plan_study


def addresses(plan: Plan) -> dict[str, str]:
    return {name: cell.address for name, cell in plan.cells.items()}


def test_cells_are_variants_by_seeds_with_teachers_first(recipe: Path) -> None:
    plan = plan_study(recipe, seeds=2)
    assert list(plan.cells) == ["ibot-s0", "ibotpp-s0", "unmasked-s0", "ibot-s1", "ibotpp-s1", "unmasked-s1"]
    student = plan.cells["unmasked-s1"]
    assert student.teacher == "ibot-s1"
    assert student.overrides["teacher.mode"] == "frozen"
    assert student.overrides["teacher.source"] == "run:runs/trio/cells/ibot-s1/run"
    assert student.overrides["seed"] == 1
    assert len(set(addresses(plan).values())) == 6


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("study/")])
def test_shipped_studies_are_valid_and_short(name: str) -> None:
    assert plan_study(name, {"data.shards": "photos.tar"} if name.endswith("_photos") else None).cells
    assert len(shipped()[name].splitlines()) < 90


def test_equal_arms_of_different_studies_are_one_cell() -> None:
    wanted = {
        "iBOT++ with head-only EMA": ["ema head", "mask_ratio mask75"],
        "the same with full EMA": ["cumulative ibotpp", "ema full", "captions synthetic", "ibotpp ibotpp"],
        "and with detailed captions": ["cumulative captions", "captions mixed"],
        "iBOT, the teacher of the bridge": ["bridge teacher", "ibotpp ibot", "cumulative baseline"],
    }
    plans = {name: plan_study(f"study/{name}", seeds=1) for name in ("ibotpp", "ema", "captions", "bridge")}
    plans |= {name: plan_study(f"study/{name}", seeds=1) for name in ("cumulative", "mask_ratio")}
    found = []
    for arms in wanted.values():
        pairs = [arm.split() for arm in arms]
        of = {plans[study].cells[f"{variant}-s0"].address for study, variant in pairs}
        assert len(of) == 1, arms
        found += of
    assert len(set(found)) == len(wanted)


@pytest.mark.parametrize("scale", [None, "small"])
def test_the_control_of_the_bridge_trains_for_as_long_as_teacher_and_student_together(scale: str | None) -> None:
    cells = plan_study("study/bridge", None if scale is None else {"scale": scale}, seeds=1).cells
    steps = {name: cells[f"{name}-s0"].content["train.steps"] for name in ("teacher", "unmasked", "longer")}
    assert steps["longer"] == steps["teacher"] + steps["unmasked"]


def test_every_finding_of_the_paper_has_a_claim() -> None:
    names = [n for n in shipped() if n.startswith("study/") and n != "study/demo" and not n.endswith("_photos")]
    claims = [claim for name in names for claim in read_study(name).claims]
    numbers = {claim.says.split(":")[0] for claim in claims}
    assert {str(n) for n in range(1, 17)} <= numbers
    known = {column.key for column in (*COLUMNS, *CLAIMED)}
    assert {claim.metric for claim in claims} <= known


def test_a_change_outside_the_factors_is_refused(edit: Callable[[str, str], Path]) -> None:
    path = edit("{title: all tokens, set: {objective", "{title: all tokens, set: {optim.lr: 1e-3, objective")
    with pytest.raises(UserError, match=r"'ibotpp' changes optim\.lr \(0\.0005 -> 0\.001\)"):
        plan_study(path)


def test_a_factor_may_be_a_branch_of_keys(edit: Callable[[str, str], Path]) -> None:
    path = edit("teacher: [teacher.mode, teacher.source]}", "teacher: teacher, rate: [optim]}")
    path.write_text(path.read_text().replace("all tokens, set: {", "all tokens, set: {optim.lr: 1e-3, "))
    path.write_text(path.read_text().replace("- [ibot, ibotpp]", "- {pair: [ibot, ibotpp], factors: [tokens, rate]}"))
    plan = plan_study(path)
    assert set(plan.differing_factors("ibot", "ibotpp")) == {"tokens", "rate"}


def test_a_comparison_across_several_factors_must_list_them(edit: Callable[[str, str], Path]) -> None:
    path = edit("{pair: [ibot, unmasked], factors: [tokens, mask, teacher]}", "[ibot, unmasked]")
    with pytest.raises(UserError, match=r"differ in 3 factors .*list them"):
        plan_study(path)


def test_a_comparison_must_list_exactly_what_differs(edit: Callable[[str, str], Path]) -> None:
    path = edit("factors: [tokens, mask, teacher]}", "factors: [tokens, mask]}")
    with pytest.raises(UserError, match="list exactly those that differ"):
        plan_study(path)


@pytest.mark.parametrize("pair", ["[ibot, ibot]", "{pair: [ibot, ibot], factors: [mask]}"])
def test_a_comparison_of_a_variant_with_itself_is_refused(edit: Callable[[str, str], Path], pair: str) -> None:
    path = edit("  - [ibot, ibotpp]\n", f"  - [ibot, ibotpp]\n  - {pair}\n")
    with pytest.raises(UserError, match="ibot and ibot differ in no factor"):
        plan_study(path)


def test_two_equal_variants_are_refused(edit: Callable[[str, str], Path]) -> None:
    path = edit("compare:\n", "  twin: {from: ibotpp}\ncompare:\n")
    with pytest.raises(UserError, match="'twin-s0' and 'ibotpp-s0' are the same run"):
        plan_study(path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"mask.ratio": 0.5}, "belongs to the factor 'mask'"),
        ({"teacher.source": "run:x"}, "belongs to the factor 'teacher'"),
        ({"seed": 3}, "--seeds"),
        ({"eval.every": 5}, "eval.samples"),
        ({"eval.tasks": ["nothing"]}, "'nothing'"),
        ({"train.stepz": 5}, "train.steps"),
    ],
)
def test_overrides_that_a_study_refuses(recipe: Path, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        plan_study(recipe, overrides)
    assert words in str(error.value)


def test_overrides_reach_every_cell_and_eval_keys_the_evaluation(recipe: Path) -> None:
    plan = plan_study(recipe, {"train": {"steps": 7}, "eval.samples": 32})
    assert {cell.content["train.steps"] for cell in plan.cells.values()} == {7}
    assert plan.eval == {"dataset": "scenes", "samples": 32, "tasks": ["zeroshot_seg", "knn"]}


def test_address_ignores_what_does_not_change_the_learning(recipe: Path) -> None:
    silent = {"data.workers": 0, "train.log_every": 1, "train.checkpoint_every": 3, "log.tensorboard": False}
    assert addresses(plan_study(recipe)) == addresses(plan_study(recipe, silent, runs="elsewhere", name="other"))


@pytest.mark.parametrize("change", [{"optim.lr": 3e-4}, {"train.steps": 41}, {"data.scenes.seed": 1}])
def test_address_follows_what_does(recipe: Path, change: dict[str, Any]) -> None:
    before, after = addresses(plan_study(recipe)), addresses(plan_study(recipe, change))
    assert not set(before.values()) & set(after.values())


def test_a_student_has_another_address_under_another_teacher(edit: Callable[[str, str], Path], recipe: Path) -> None:
    before = addresses(plan_study(recipe))
    after = addresses(plan_study(edit("teacher: ibot,", "teacher: ibotpp,")))
    assert before["ibot-s0"] == after["ibot-s0"]
    assert before["unmasked-s0"] != after["unmasked-s0"]


def test_a_new_key_at_its_default_keeps_the_address_and_a_changed_default_is_noticed() -> None:
    values = {"mask.ratio": 0.75, "optim.lr": 1e-3}  # the first is the schema's default
    assert address(values) == address({"optim.lr": 1e-3})
    assert same_content(values, {**values, "brand.new": 1})
    assert not same_content(values, {**values, "mask.ratio": 0.5})


def test_select_adds_the_teachers_that_are_needed(recipe: Path) -> None:
    plan = plan_study(recipe, seeds=[3])
    assert select(plan, ["unmasked"]) == {"unmasked-s3", "ibot-s3"}
    with pytest.raises(UserError, match="Did you mean 'ibotpp'"):
        select(plan, ["ibotp"])
