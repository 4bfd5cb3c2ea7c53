"""`distill plan`: what it says, what it refuses, and ways that really fit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill import cli
from distill.config.load import load_config
from distill.errors import UserError
from distill.plan import lines
from distill.preflight import plan as plan_module
from distill.preflight.hardware import find_gpu
from distill.preflight.plan import make_plan, split_words, ways_to_fit

TINY = ["data.scenes.count=8", "students.0.depth=1", "text.layers=1"]


def test_the_papers_run(capsys):
    assert cli.main(["plan", "pretrain/tipsv2_g14", "gpus=512", "gpu=h100"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "pretrain/tipsv2_g14 on 512 x h100 (NVIDIA H100 data sheet",
        "A step of 8,192 images, 16 at once on each device",
        ": fits",
        "90,000 steps, 737,280,000 images",
        "Bound by: ",
        "not from a measurement",
    ):
        assert expected in out


def test_words_of_the_plan_are_no_settings():
    own, rest = split_words(["gpu=h200", "train.steps=5", "gpus=4", "gpu"])
    assert own == {"gpu": "h200", "gpus": "4"}
    assert rest == ["train.steps=5"]
    plan, resolved = make_plan("pretrain/scenes_tiny", [*TINY, "gpus=4", "gpu=h200", "train.steps=5"])
    assert (plan.devices, plan.steps, plan.images) == (4, 5, 4)
    assert resolved.config.train.accelerator == "cuda"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpu=h20"], r"Unknown gpu 'h20'\. Did you mean 'h200'\? Allowed: a100-40, .*cpu"),
        (["gpus=0"], r"gpus is 0\. Allowed: 1 or more"),
        (["gpus=many"], r"gpus is many\. Allowed: 1 or more"),
        (["gpus=3"], r"train.batch: 16 does not divide into .*1 x 3 = 3"),
        (["optim.lrr=1"], r"optim.lrr: unknown key"),
    ],
)
def test_refused(words, message):
    with pytest.raises(UserError, match=message):
        make_plan("pretrain/scenes_tiny", words)


def test_json_and_status(capsys):
    large = ["pretrain/tipsv2_b14", "gpus=8", "gpu=a100-40", "--json"]
    assert cli.main(["plan", *large]) == 1  # does not fit
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is False
    assert plan["seconds"] == pytest.approx(sum(plan["parts"].values()))
    assert plan["days"] == pytest.approx(plan["seconds"] * plan["steps"] / 86400)
    assert plan["utilisation"] == pytest.approx(plan["cost"]["flops"] / plan["seconds"] / (312e12 * 8))


def test_ways_fit_and_the_quickest_comes_first():
    plan, _ = make_plan("pretrain/tipsv2_b14", ["gpus=8", "gpu=a100-40"])
    assert plan.ways
    assert all(way.memory <= plan.capacity for way in plan.ways)
    times = [way.seconds for way in plan.ways]
    assert times == pytest.approx(sorted(times), rel=0.02)


@pytest.mark.parametrize(
    ("recipe", "words", "proposed", "refused"),
    [
        ("pretrain/tipsv2_b14", ["gpu=a100-40"], "train.accumulate=8 train.strategy=fsdp", "ddp"),
        ("pretrain/tipsv2_g14_highres", [], "train.accumulate=64 train.checkpointing=none", "selective"),
        ("pretrain/tipsv2_g14", ["train.strategy=fsdp"], "train.accumulate=64 train.strategy=ddp", "fsdp"),
        ("pretrain/tipsv2_b14", ["gpu=a100-40", "optim.name=adafactor"], "train.accumulate=8", "fsdp"),
        ("pretrain/tipsv2_b14", ["gpu=a100-40", "train.precision=fp16"], "train.accumulate=8", "fsdp"),
        ("distill/l14_b14_from_g14", [], "train.accumulate=16 train.strategy=fsdp", "ddp"),
    ],
)
def test_every_way_planned_again_is_valid_and_gives_what_it_promised(recipe, words, proposed, refused):
    words = ["gpus=8", *words]
    plan, _ = make_plan(recipe, words)
    assert proposed in [" ".join(way.settings) for way in plan.ways]
    for way in plan.ways:
        assert refused not in " ".join(way.settings)
        again, _ = make_plan(recipe, [*words, *way.settings])
        assert again.fits
        assert (again.cost.total_memory, again.seconds) == (way.memory, way.seconds)


def test_one_device_has_nothing_to_spread():
    plan, _ = make_plan("pretrain/tipsv2_b14", ["gpus=1", "train.strategy=fsdp"])
    assert plan.ways
    assert not any("strategy" in word for way in plan.ways for word in way.settings)


def test_nothing_fits_into_nothing():
    _, resolved = make_plan("pretrain/scenes_tiny", TINY)
    counts = plan_module.count_models(resolved.config)
    assert ways_to_fit(resolved.config, counts, "bf16", find_gpu("h100"), 1000.0) == []


def test_a_cpu_is_probed_with_the_threads_of_the_run(monkeypatch, capsys):
    import torch

    seen = []

    def probe(config, counts, passes, precision):
        seen.append((torch.get_num_threads(), precision, config.train.accelerator))
        return {"blocks": 2.0, "optimiser": 0.5}

    monkeypatch.setattr(plan_module, "cpu_seconds", probe)
    before = torch.get_num_threads()
    words = ["pretrain/scenes_tiny", *TINY, "gpu=cpu", "train.threads=3", "train.precision=fp32", "train.steps=100"]
    assert cli.main(["plan", *words]) == 0
    out = capsys.readouterr().out
    assert seen == [(3, "fp32", "cpu")]
    assert torch.get_num_threads() == before
    assert "probed with 3 threads" in out
    assert "2.50 s" in out
    assert "Bound by: blocks" in out
    assert "4.2 min" in out  # 250 s
    assert "of the peak" not in out


def test_on_a_cpu_too_settings_are_named_that_fit(monkeypatch, capsys):
    words = [*TINY, "gpu=cpu", "train.precision=fp32"]
    monkeypatch.setattr(plan_module, "cpu_seconds", lambda *_: {"blocks": 2.0})
    whole, half = (
        make_plan("pretrain/scenes_tiny", [*words, *more])[0].cost.total_memory for more in ([], ["train.accumulate=2"])
    )
    assert half < whole

    def said(free: float) -> str:
        monkeypatch.setattr(plan_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
        assert cli.main(["plan", "pretrain/scenes_tiny", *words]) == 1
        return capsys.readouterr().out

    assert f"To make it fit\n  train.accumulate=2: {half / 2**20:.0f} MiB\n" in said(half)
    assert "Not one image at a time fits." in said(1000)


def test_check_and_plan_agree(capsys):
    from distill.preflight.report import preflight

    words = ["train.devices=4", "train.precision=bf16", "train.accelerator=cuda", *TINY]
    plan, _ = make_plan("pretrain/scenes_tiny", ["gpus=4", *words[1:2], *TINY])
    assert preflight(load_config("pretrain/scenes_tiny", words)).cost == plan.cost


def test_the_planning_page_shows_what_the_tool_says():
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text()
    command, *shown = page.partition("$ distill plan ")[2].partition("```")[0].splitlines()
    recipe, *words = command.split()
    said = lines(make_plan(recipe, words)[0])
    assert len(shown) > 10
    assert [line for line in shown if line not in said] == []


def test_the_points_on_the_planning_page_are_what_the_tool_says():
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text()
    points = " ".join(page.partition("What bounds it:")[2].split())
    gib = lambda plan: plan.cost.total_memory / 2**30  # noqa: E731
    h200 = ["gpus=64", "gpu=h200"]
    whole = make_plan("pretrain/tipsv2_g14", h200)[0]
    products = whole.parts["matrix products"] / whole.seconds
    assert f"({products:.0%} of the step, {whole.utilisation:.0%} of the peak)".replace("%", " %") in points
    assert f"128 images at once would need {gib(whole):.0f} GiB" in points
    parts = make_plan("pretrain/tipsv2_g14", [*h200, "train.accumulate=4"])[0]
    assert f"`train.accumulate=4` brings that to {gib(parts):.0f} GiB" in points
    assert f"{parts.seconds:.2f} s a step, {24 * parts.days:.0f} hours" in points
    h100 = ["gpus=512", "gpu=h100"]
    none, selective = (
        make_plan("pretrain/tipsv2_g14_highres", [*h100, f"train.checkpointing={how}"])[0]
        for how in ("none", "selective")
    )
    more = selective.seconds / none.seconds - 1
    assert f"for 8 images: {gib(none):.0f} GiB of the {none.capacity / 2**30:.0f} that" in points
    assert f"brings to {gib(selective):.0f} for {100 * more:.0f} % more time" in points
    assert f"take about {24 * selective.days:.1f} hours on 512 H100" in points
