"""`distill check`: every shipped recipe passes, and what is wrong is told before anything runs."""

from __future__ import annotations

import json

import pytest

from distill.check import check
from distill.config.load import ConfigError
from distill.config.recipes import shipped
from distill.errors import UserError


def report(capsys, recipe: str, *overrides: str) -> tuple[int, dict]:
    status = check(recipe, list(overrides), as_json=True)
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", [name for name in shipped() if not name.startswith("eval/")])
def test_every_shipped_recipe_passes(name, capsys):
    assert check(name, []) == 0
    assert "alid" in capsys.readouterr().out


def test_the_full_size_recipe_shows_sizes_open_values_and_receipts(capsys):
    assert check("pretrain/tipsv2_g14", []) == 0
    out = capsys.readouterr().out
    for expected in (
        "1,135.83 M",
        "389.13 M",
        "16 x 16 patches, 192 masked, 64 visible, supervised: all; 6 locals 98 px = 7 x 7",
        "averaging the heads alone saves 49.3%",
        "You must supply\n  data.shards=...",
        "To run it: distill run pretrain/tipsv2_g14 data.shards=... text.tokenizer=...",
        "90,000 steps",
    ):
        assert expected in out


def test_head_only_averaging_on_vit_b_saves_what_the_paper_says(capsys):
    _, result = report(capsys, "pretrain/tipsv2_b14")
    assert 0.42 < result["saving"] < 0.43


def test_two_students_of_one_teacher(capsys):
    _, result = report(capsys, "distill/l14_b14_from_g14")
    assert [(m["name"], m["arch"]["size"]) for m in result["counts"]["models"]] == [("l14", "L"), ("b14", "B")]
    assert set(result["supply"]) == {"data.shards", "teacher.source", "text.tokenizer"}
    spares = sum(model["image"] + model["text"] + 1 for model in result["counts"]["models"])
    assert result["counts"]["averaged"] == spares  # both towers and the temperature of each


def test_what_differs_is_shown(capsys):
    check("pretrain/scenes_tiny", ["mask.ratio=0.5", "name=half"])
    out = capsys.readouterr().out
    assert "pretrain/scenes_tiny -> runs/half" in out
    assert "mask.ratio: 0.75 -> 0.5 (command line)" in out
    assert "18 masked, 18 visible" in out


def test_memory_names_the_parts_that_there_are(capsys):
    shown = {}
    for kind in ("cuda", "cpu"):
        check("pretrain/scenes_tiny", [f"train.accelerator={kind}", "train.precision=fp32"])
        shown[kind] = next(line for line in capsys.readouterr().out.splitlines() if "memory on" in line)
    assert all("activations" in line and "low-precision" not in line for line in shown.values())
    assert "libraries" in shown["cpu"]
    assert "libraries" not in shown["cuda"]
    assert "memory on the CPU" in shown["cpu"]
    assert "memory on the GPU" in shown["cuda"]


def test_without_a_gpu_memory_here_is_told_too(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _, here = report(capsys, "pretrain/scenes_tiny", "train.accelerator=cpu")
    check("pretrain/scenes_tiny", [])
    line = next(line for line in capsys.readouterr().out.splitlines() if "memory on the GPU" in line)
    assert line.endswith(f"; on this CPU {sum(here['cost']['memory'].values()) / 2**20:.0f} MiB")
    _, asked = report(capsys, "pretrain/scenes_tiny", "train.accelerator=cuda", "train.precision=fp32")
    assert asked["cpu_memory"] is None


def test_an_invalid_recipe_is_refused_by_the_code_that_run_uses(capsys):
    with pytest.raises(ConfigError, match=r"mask\.ration: unknown key"):
        check("pretrain/scenes_tiny", ["mask.ration=0.5"])
    status, result = report(capsys, "pretrain/scenes_tiny", "mask.ration=0.5", "train.batch=0")
    assert status == 2
    assert len(result["problems"]) == 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["students.init=run:nowhere"], "students.0.init: No run or checkpoint at nowhere"),
        (["text.init=no.pt"], "text.init: No run or checkpoint at no.pt"),
        (["train.stage_from=run:nowhere"], "train.stage_from: No run or checkpoint at nowhere"),
        (["text.tokenizer=no.model"], "text.tokenizer: no file no.model"),
        (["teacher.mode=frozen", "teacher.source=run:nowhere"], "No run or checkpoint at nowhere"),
        (["data.source=shards", "data.shards=nowhere/*.tar"], "No shard matches 'nowhere/*.tar'"),
    ],
)
def test_missing_files_are_problems(capsys, tmp_path, monkeypatch, overrides, expected):
    monkeypatch.chdir(tmp_path)
    assert check("pretrain/scenes_tiny", overrides) == 1
    out = capsys.readouterr().out
    assert expected in out.partition("Problems")[2]
    assert "a run would be refused" in out


def test_warnings_do_not_fail(capsys):
    assert check("pretrain/scenes_tiny", ["objective.cls.weight=0"]) == 0
    assert "crops are made but not used" in capsys.readouterr().out


def test_a_patch_of_another_size_in_the_teacher_is_planned(capsys, tmp_path):
    import torch

    from distill.config.load import load_config
    from distill.models.loading import pack_model
    from distill.training.assemble import assemble

    small = {"heads.prototypes": 64, "students.0.depth": 1, "text.layers": 1, "students.0.arch": "tiny/16"}
    small |= {"views.local_size": 32}
    config = load_config("pretrain/scenes_tiny", small).config
    student = assemble(config, ["a b"]).distiller.students["student"].model
    teacher = {"mode": "ema_head", "feature_width": None}
    content = {"students": {"a": pack_model(student)}, "heads_config": vars(config.heads), "teacher": teacher}
    torch.save(content, tmp_path / "t.pt")
    overrides = [f"teacher.source=run:{tmp_path}/t.pt", "heads.prototypes=64"]
    assert check("distill/scenes_tiny_student", overrides) == 0
    assert "teacher: global 48 px = 3 x 3 patches, unmasked; targets resized bilinearly to the students' 6 x 6" in (
        capsys.readouterr().out
    )


def test_kept_targets_are_estimated_and_refused_above_the_limit(capsys, small_run, tmp_path):
    source = small_run("teacher", **{"train.steps": 1}).folder
    recipe = ["distill/scenes_tiny_student", f"teacher.source=run:{source}", "heads.prototypes=32"]
    kept = [f"teacher.cache.path={tmp_path / 'cache'}", "teacher.cache.epochs=3"]
    status, result = report(capsys, *recipe, *kept)
    assert status == 0, result["problems"]
    # 3 x 4,000 views of a CLS and 6 x 6 patches, 16 halves each, and a record of 80 bytes
    assert f"{12_000 * (37 * 16 * 2 + 80) / 2**20:,.1f} MiB at {tmp_path / 'cache'}" in result["kept"]
    assert "the teacher sees 75% of the run's images" in result["kept"]  # of 1,000 steps of 16
    status, result = report(capsys, *recipe, *kept, "teacher.cache.limit=0.01")
    assert (status, len(result["problems"])) == (1, 1)
    assert "teacher.cache.limit is 0.01 GiB" in result["problems"][0]
    _, result = report(capsys, *recipe, *kept, "objective.patch.target=features", "teacher.cache.dtype=fp32")
    assert "CLS 16 + 36 patches x 128 in fp32" in result["kept"]
    _, result = report(capsys, "distill/scenes_tiny_student", *kept)
    assert result["kept"].endswith("the size is known when teacher.source and data.shards are given")
    assert not (tmp_path / "cache").exists()
    assert report(capsys, *recipe)[1]["kept"] is None


def test_a_study_is_checked_as_a_whole(capsys):
    assert check("study/demo", []) == 0
    out = capsys.readouterr().out
    assert "ibotpp" in out
    assert "all valid" in out
    status, result = report(capsys, "study/demo")
    assert (status, result["problems"]) == (0, [])
    with pytest.raises(UserError, match="unknown key"):
        check("study/demo", ["optim.lrr=3"])


def test_a_study_whose_data_is_not_there_is_no_valid_one(capsys):
    words = ["data.shards=nope/*.tar", "eval.dataset=folder:/nope"]
    assert check("study/bridge_photos", words) == 1
    out = capsys.readouterr().out
    assert "nope" in out and "eval.dataset: " in out
    assert "A cell would be refused." in out


def test_a_study_says_what_it_leaves_to_the_user(capsys):
    assert check("study/bridge_photos", []) == 0
    out = capsys.readouterr().out
    assert "You must supply\n  data.shards=...  tars" in out and "\n  eval.dataset=...  " in out
    assert "distill study study/bridge_photos data.shards=... eval.dataset=...\n" in out
    assert list(report(capsys, "study/bridge_photos")[1]["supply"]) == ["data.shards", "eval.dataset"]


def test_the_command_to_run_has_the_settings_that_were_checked(capsys):
    check("pretrain/scenes_tiny", ["train.steps=7", "captions.cls2=[]"])
    assert "To run it: distill run pretrain/scenes_tiny train.steps=7 'captions.cls2=[]'\n" in capsys.readouterr().out


def test_an_evaluation_that_would_fail_is_a_problem(capsys):
    status, result = report(capsys, "pretrain/scenes_tiny", "eval.dataset=folder:/nope")
    assert status == 1
    assert result["problems"][0].startswith("eval: ") and "/nope" in result["problems"][0]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "distill/l14_b14_from_tipsv2_g14",
            ("weights not here", "licence apache-2.0", "TIPSv2 g/14", "no normalisation", "2 CLS + patches of 14 px",
             "position grid 32x32", "1,135.8 M image", "no heads", "targets one to one", "its weights are not on this"),
        ),
        (
            "distill/b16_from_siglip2_so400m",
            ("normalised by mean 0.5 0.5 0.5", "1 CLS + patches of 16 px", "position grid 16x16", "256,000 tokens",
             "give a file: open_clip:ViT-SO400M-16-SigLIP2-256/webli@"),
        ),
    ],
)  # fmt: skip
def test_a_released_teacher_is_told_in_one_line_without_its_weights(capsys, monkeypatch, tmp_path, name, parts):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert check(name, []) == 0
    out = capsys.readouterr().out
    for part in parts:
        assert part in out
