"""Runs whose frozen teacher is somebody else's: another normalisation, another patch size, no heads, no texts."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from distill.config.load import load_config
from distill.errors import UserError
from distill.models.adapted import AdaptedModel
from distill.preflight.report import preflight
from distill.training import live_eval
from distill.training.run import run

FEATURES = {
    "teacher.mode": "frozen",
    "objective.patch.target": "features",
    "objective.cls.weight": 0.0,
    "train.steps": 1,
    "train.batch": 4,
    "data.scenes.count": 32,
}


@pytest.fixture
def source(tmp_path) -> str:
    """timm's smallest vision transformer, patches of 16 px, random weights in a file."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "vit.safetensors")
    return f"timm:test_vit@{tmp_path / 'vit.safetensors'}"


@pytest.mark.parametrize(("meet", "seen"), [("targets", 32), ("input", 64)])
def test_a_released_teacher_is_shown_what_the_plan_says_in_its_own_normalisation(
    build, source, meet, seen, monkeypatch
):
    keys = FEATURES | {"teacher.source": source, "teacher.meet": meet}
    _, assembly, batch = build(**keys)
    model = assembly.teacher.model
    assert isinstance(model, AdaptedModel)
    shown = []
    original = model.image.trunk.forward_features
    monkeypatch.setattr(model.image.trunk, "forward_features", lambda x: shown.append(x) or original(x))
    out = assembly.distiller(batch, 0.07)
    assert torch.isfinite(out.loss)
    (images,) = shown
    assert images.shape[-2:] == (seen, seen)
    mean, std = (torch.tensor(model.image.trunk.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = images * std + mean
    assert pixels.min() > -0.01 and pixels.max() < 1.01
    assert images.min() < -0.5  # what is black in [0, 1] is far below 0 for the teacher
    assert out.targets.patch.features.shape == (len(images), 16, 64)  # the student's 4 x 4 patches


def test_a_run_trains_and_evaluates_what_can_be(small_run, saved, source):
    keys = FEATURES | {"teacher.source": source, "eval.tasks": ["zeroshot_seg", "knn"], "eval.samples": 8}
    folder = small_run("a", **keys).folder
    (file,) = (folder / "evals").iterdir()
    results = json.loads(file.read_text())
    assert set(results["student"]) == {"zeroshot_seg", "knn"}
    assert set(results["teacher"]) == {"knn"}  # it has no text tower to compare patches with
    content = saved(folder)
    assert content["teacher"]["sha256"] is not None
    assert content["teacher"]["state"]["heads"]["feature_norm.mean"].shape == (64,)
    assert not any(name.startswith("model") for name in content["teacher"]["state"])
    keys = {"teacher.source": source, "objective.cls.weight": 1.0, "views.locals": 2, "eval.tasks": []}
    content = saved(small_run("b", **FEATURES | keys).folder)  # its global CLS-1 is regressed too
    assert content["teacher"]["state"]["heads"]["cls_norm.mean"].shape == (64,)
    with pytest.raises(UserError, match=r"timm:test_vit@.* has no prototype heads"):
        small_run("c", **FEATURES | keys | {"teacher.heads.kind": "own", "objective.cls.target": "prototypes"})


@pytest.mark.parametrize("key", ["text.init", "students.0.init"])
def test_a_run_refuses_to_start_from_what_the_teacher_has_not(small, small_run, source, key):
    keys = FEATURES | {"teacher.source": source, key: "teacher"}
    with pytest.raises(UserError, match=r"init: teacher (has no text tower|is not a tower) of ours") as refused:
        small_run("a", **keys)
    assert preflight(load_config("pretrain/scenes_tiny", small(**keys))).problems == [str(refused.value)]


@pytest.fixture
def refused(small_run, source, tmp_path):
    """What a run with such a teacher is refused with, before its first step."""

    def start(**keys) -> str:
        with pytest.raises(UserError) as error:
            small_run("a", **FEATURES, **{"teacher.source": source, "eval.samples": 8}, **keys)
        assert not (tmp_path / "a" / "metrics.csv").exists()
        return str(error.value)

    return start


def test_what_a_teacher_lacks_for_its_evaluation_is_told_before_the_first_step(refused, monkeypatch):
    one_cls = {"eval.tasks": ["linear_cls"], "eval.settings": ["linear_cls.cls=2"]}
    assert "eval.tasks, for teacher: linear_cls.cls = 2: the model has 1 CLS token(s)." in refused(**one_cls)

    def value_block(trunk):
        raise UserError("No value path.")

    monkeypatch.setattr("distill.models.sources.timm.value_block", value_block)
    said = refused(**{"eval.tasks": ["knn", "locality"]})
    assert said.startswith("eval.tasks, for teacher: No value path. Set its options in eval.settings, or")


def test_a_dry_run_is_told_too(small, source, tmp_path):
    keys = {"teacher.source": source, "eval.tasks": ["linear_cls"], "eval.settings": ["linear_cls.cls=2"]}
    with pytest.raises(UserError, match=r"for teacher: linear_cls\.cls = 2"):
        run("pretrain/scenes_tiny", small(**FEATURES, **keys), runs=tmp_path, dry_run=True)


def test_a_model_that_cannot_be_evaluated_leaves_the_others_their_scores(small_run, source, tmp_path, monkeypatch):
    original = live_eval.evaluate

    def evaluate(model, *args, **options):
        if isinstance(model, AdaptedModel):
            raise UserError("no")
        return original(model, *args, **options)

    monkeypatch.setattr(live_eval, "evaluate", evaluate)
    keys = FEATURES | {"teacher.source": source, "eval.tasks": ["knn"], "eval.samples": 8}
    with pytest.raises(UserError, match=r"^teacher: no$"):
        small_run("a", **keys)
    (file,) = (tmp_path / "a" / "evals").iterdir()
    assert list(json.loads(file.read_text())) == ["student"]
