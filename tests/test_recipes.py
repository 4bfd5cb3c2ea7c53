"""The shipped recipes: short, with a header, valid, and as the paper says where they claim to be the paper's."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from distill.config.load import load_config
from distill.config.recipes import header, shipped
from distill.preflight.cost import step_cost
from distill.preflight.counts import count_models
from teachers.meeting import plan

RECIPES = shipped()
RUNS = [name for name in RECIPES if not name.startswith(("study/", "eval/"))]
RELEASED = ["distill/l14_b14_from_tipsv2_g14", "distill/b16_from_siglip2_so400m"]  # released teachers have no heads
FULL_SIZE = [name for name in RUNS if "14" in name and name not in (*RELEASED, "distill/s14_from_own_teacher")]


def test_there_are_recipes_to_pretrain_and_to_distil():
    assert {"pretrain/scenes_tiny", "pretrain/tipsv2_g14", "distill/l14_b14_from_g14"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_says_what_it_is_for(name):
    text = RECIPES[name]
    top = header(text)
    assert len(text.splitlines()) < (90 if name.startswith("study/") else 40)  # a study lists its arms and claims
    assert top.purpose.endswith(".") and len(top.purpose) < 110
    assert top.reproduces
    assert top.costs


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_loads_without_warnings(name):
    resolved = load_config(name)
    assert resolved.warnings == []
    assert resolved.config.name == name.split("/")[1]


@pytest.mark.parametrize("name", [n for n in RUNS if n.startswith("pretrain/") and n.endswith("scenes_tiny")])
def test_pretraining_on_scenes_leaves_nothing_to_supply(name):
    assert load_config(name).missing == []


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_recipes_have_the_papers_numbers(name):
    config = load_config(name).config
    objective = config.objective
    assert (objective.patch.weight, objective.cls.weight, objective.contrastive.weight) == (2.0, 1.0, 1.0)
    assert (objective.patch.tokens, objective.patch.target, objective.patch.balance) == ("all", "auto", "center")
    assert (config.captions.cls1, config.captions.cls2) == (["web"], ["synthetic", "detailed"])
    assert (config.views.locals, config.views.flip) == (6, 0.5)
    assert (config.text.context, config.vision.position_grid, config.heads.prototypes) == (64, 32, 32768)


def test_the_schedules_of_the_paper():
    def numbers(name: str) -> tuple[int, ...]:
        config = load_config(name).config
        return config.train.steps, config.train.batch, config.views.global_size, config.views.local_size

    assert numbers("pretrain/tipsv2_g14") == (90_000, 8192, 224, 98)
    assert numbers("pretrain/tipsv2_g14_highres") == (9_000, 4096, 448, 140)
    assert numbers("pretrain/tipsv2_l14") == (100_000, 8192, 224, 98)
    assert numbers("pretrain/tipsv2_b14") == (100_000, 8192, 224, 98)
    assert numbers("distill/l14_b14_from_g14") == (90_000, 8192, 224, 98)


def test_the_second_stage_costs_what_its_header_says():
    def operations(name: str) -> float:
        config = load_config(name).config
        return step_cost(config, count_models(config), "bf16").flops * config.train.steps

    share = operations("pretrain/tipsv2_g14_highres") / operations("pretrain/tipsv2_g14")
    assert round(1 / share) == 6
    assert "a sixth of the first stage's compute" in header(RECIPES["pretrain/tipsv2_g14_highres"]).costs


def test_the_second_stage_names_the_tables_that_hold_its_model():
    rows = json.loads(resources.files("distill.evals").joinpath("published.json").read_text())["TIPSv2 g/14"]
    tables = sorted({int(row["source"].rpartition(" ")[2]) for row in rows})
    said = header(RECIPES["pretrain/tipsv2_g14_highres"]).reproduces
    assert [int(number) for number in re.findall(r"\d+", said.partition("Tables")[2].partition(";")[0])] == tables


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("pretrain/")])
def test_a_header_that_claims_the_papers_method_says_what_is_not_the_papers(name):
    said, objective = header(RECIPES[name]).reproduces, load_config(name).config.objective
    if "the method of the paper but for" in said:
        assert ("Sinkhorn" in said) == (objective.patch.balance == "sinkhorn")
        assert ("CLS loss" in said) == (objective.cls.weight != 1.0)


def test_pretraining_masks_and_averages_the_head_distillation_does_neither():
    pretrain = load_config("pretrain/tipsv2_g14").config
    assert (pretrain.mask.ratio, pretrain.mask.kind, pretrain.teacher.mode) == (0.75, "random", "ema_head")
    assert (pretrain.teacher.momentum.start, pretrain.teacher.momentum.end) == (0.994, 1.0)
    distil = load_config("distill/l14_b14_from_g14").config
    assert (distil.mask.ratio, distil.teacher.mode) == (0.0, "frozen")
    assert [student.arch for student in distil.students] == ["L/14", "B/14"]


def test_the_arms_of_the_comparison_differ_in_one_key():
    resolved = load_config("pretrain/ibot_scenes_tiny")
    plus = load_config("pretrain/scenes_tiny")
    different = {key for key, value in resolved.values.items() if plus.values[key].value != value.value}
    assert different == {"name", "objective.patch.tokens"}
    assert resolved.config.teacher.mode == "ema_head"  # the paper's baseline averages the trunk too
    assert "but with head-only EMA" in header(RECIPES["pretrain/ibot_scenes_tiny"]).reproduces


@pytest.mark.parametrize("name", RELEASED)
def test_released_teachers_need_no_heads_and_nothing_but_data(name):
    resolved = load_config(name)
    objective = resolved.config.objective
    assert (objective.patch.target, objective.cls.target, objective.patch.tokens) == ("auto", "auto", "all")
    counts = count_models(resolved.config)
    assert counts.targets == "features: standardised by channel"
    assert resolved.config.mask.ratio == 0.0
    assert set(resolved.missing) <= {"data.shards", "text.tokenizer"}


def test_a_teacher_of_ones_own_meets_a_student_of_another_patch_size():
    config = load_config("distill/s14_from_own_teacher", ["teacher.source=run:t"]).config
    meeting = plan(config.views.global_size, 14, 8, config.teacher.meet)
    assert (meeting.size, meeting.teacher, meeting.student) == (64, 8, 8)


SUITES = [name for name in RECIPES if name.startswith("eval/")]


@pytest.mark.parametrize("name", SUITES)
def test_an_evaluation_recipe_asks_for_known_tasks_datasets_and_options(name):
    """Benchmarks need their files; what can be said without them is checked."""
    from dataclasses import fields

    from distill.evals.datasets import parse
    from distill.evals.registry import find_task
    from distill.evals.requests import read_suite

    suite = read_suite([name], data="/data")
    assert len(suite.requests) >= 4
    for request in suite.requests.values():
        parse(request.dataset)
        assert set(request.options) <= {field.name for field in fields(find_task(request.task).Options)}


@pytest.mark.parametrize("verb", ["run", "check"])
def test_an_evaluation_recipe_is_not_trained(verb, capsys):
    from distill.cli import main

    assert main([verb, "eval/scenes"]) == 2
    assert "'eval/scenes' is a list of evaluation tasks; use: distill eval MODEL eval/scenes" in capsys.readouterr().err
