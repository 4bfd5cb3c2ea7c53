"""Teachers without heads: what is made for them before the first step, kept, resumed and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.check import check
from distill.config.load import load_config
from distill.errors import UserError
from distill.preflight.counts import count_models
from distill.training import teacher_heads
from distill.training.fill import fill
from distill.training.receipts import receipts

SHORT = {"train.steps": 2, "train.batch": 4, "data.scenes.count": 32, "heads.prototypes": 8}
FITTED = {"teacher.heads.kind": "fitted", "teacher.heads.steps": 3, "train.batch": 8}
TRAINED = FITTED | {"teacher.heads.kind": "trained"}
FEATURES = {"objective.patch.target": "features", "objective.cls.target": "features"}
PHI_S = FEATURES | {"objective.feature_norm": "phi_s", "teacher.heads.steps": 3}


@pytest.fixture
def source(small_run) -> str:
    """A run with heads of its own, as `run:PATH`."""
    return f"run:{small_run('teacher', **SHORT | {'train.steps': 1}).folder}"


@pytest.fixture
def distil(small_run, saved, source):
    """Two steps from that teacher: `distil(name, **changes) -> (folder, content of its checkpoint)`."""

    def start(name: str, **changes) -> tuple[Path, dict]:
        keys = {"teacher.mode": "frozen", "teacher.source": source}
        resume = changes.pop("resume", False)
        folder = small_run(name, resume=resume, **SHORT | keys | changes).folder
        return folder, saved(folder)

    return start


def heads_of(content: dict) -> dict[str, torch.Tensor]:
    return content["teacher"]["state"]["heads"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def weights(content: dict) -> dict[str, torch.Tensor]:
    return content["students"]["student"]["weights"]


def test_kinds_are_own_fitted_and_trained(distil):
    own, fitted, trained = distil("own")[1], distil("fitted", **FITTED)[1], distil("trained", **TRAINED)[1]
    assert heads_of(own) == {}  # they come from the source
    torch.testing.assert_close(heads_of(fitted)["heads.patch.prototypes"].norm(dim=1), torch.ones(8))
    assert heads_of(trained)["heads.shared.prototypes"].shape == (8, 16)
    kinds = [content["config"]["teacher"]["heads"]["kind"] for content in (own, fitted, trained)]
    assert kinds == ["own", "fitted", "trained"]  # `auto` of the first was worked out
    assert not same(weights(own), weights(fitted))
    assert not same(weights(trained), weights(fitted))


def test_more_steps_see_more_batches(distil, monkeypatch):
    seen = []
    monkeypatch.setattr(teacher_heads, "preparations", lambda *_: [Counter(seen)])
    for steps in (2, 5):
        distil(f"s{steps}", **PHI_S | {"teacher.heads.steps": steps, "train.accumulate": 2})
    assert seen == [2] * 4 + [2] * 10  # images in each micro-batch


class Counter:
    def __init__(self, seen: list[int]):
        self.seen = seen

    def add(self, output) -> None:
        self.seen.append(len(output.cls))

    def finish(self) -> None:
        """Nothing to do."""

    def report(self) -> str:
        return "nothing"


def test_entropy_sets_the_temperature(distil):
    sharp = heads_of(distil("sharp", **FITTED, **{"teacher.heads.entropy": 0.1})[1])
    soft = heads_of(distil("soft", **FITTED, **{"teacher.heads.entropy": 0.8})[1])
    assert torch.equal(sharp["heads.patch.prototypes"], soft["heads.patch.prototypes"])
    for kind in ("cls", "patch"):
        assert sharp[f"heads.{kind}.temperature"] < soft[f"heads.{kind}.temperature"] / 2


@pytest.mark.parametrize("changes", [FITTED, TRAINED, PHI_S], ids=["fitted", "trained", "phi_s"])
def test_a_resumed_run_makes_nothing_again_and_is_the_same(distil, monkeypatch, changes):
    changes = changes | {"train.checkpoint_every": 1, "train.steps": 3, "train.keep": 3}
    _, whole = distil("whole", **changes)
    other, again = distil("cut", **changes)
    assert same(heads_of(again), heads_of(whole))  # made the same way every time
    for step in (2, 3):
        (other / "checkpoints" / f"step_{step:08d}.pt").unlink()
    monkeypatch.setattr(teacher_heads, "preparations", lambda *_: pytest.fail("made again"))
    _, resumed = distil("cut", resume=True, **changes)
    assert same(weights(resumed), weights(whole))
    assert same(heads_of(resumed), heads_of(whole))


def test_making_heads_leaves_dropout_and_order_of_training_alone(distil):
    """The first step's contrast is the same with and without the pass before it."""
    from distill.training.metrics import read_metrics

    keys = {"text.dropout": 0.3, "train.steps": 1, "train.batch": 8}
    first = [read_metrics(distil(n, **k | keys)[0] / "metrics.csv")[0] for n, k in (("a", {}), ("b", TRAINED))]
    assert first[0]["student/contrastive"] == first[1]["student/contrastive"]


def test_a_second_stage_goes_on_with_the_heads_of_the_first(distil, monkeypatch):
    folder, first = distil("first", **FITTED)
    monkeypatch.setattr(teacher_heads, "preparations", lambda *_: pytest.fail("made again"))
    _, second = distil("second", **FITTED, **{"train.stage_from": str(folder)})
    assert same(heads_of(second), heads_of(first))


def test_a_second_stage_with_another_model_of_the_same_run_makes_its_own(distil, small_run):
    averaged = small_run("averaged", **SHORT, **{"students.0.ema": 0.5}).folder
    folder, first = distil("first", **FITTED, **{"teacher.source": f"run:{averaged}"})
    stage = {"train.stage_from": str(folder), "teacher.source": f"run:{averaged}#student.ema"}
    _, second = distil("second", **FITTED, **stage)
    assert not same(heads_of(second), heads_of(first))


def test_a_second_stage_with_other_heads_makes_its_own(distil):
    folder, _ = distil("first", **FITTED)
    _, second = distil("second", **TRAINED, **{"train.stage_from": str(folder)})
    assert "heads.shared.prototypes" in heads_of(second)


def test_features_of_a_source_without_heads_are_regressed_unless_prototypes_are_asked_for(distil, small_run, tmp_path):
    plain = small_run("plain", **SHORT, **{"objective.patch.weight": 0.0, "objective.cls.weight": 0.0}).folder
    regressed = small_run("regressed", **SHORT, **FEATURES).folder  # its prototype heads were never trained
    for name, folder in (("a", plain), ("b", regressed)):
        _, content = distil(name, **{"teacher.source": f"run:{folder}"})
        objective = content["config"]["objective"]
        assert (objective["cls"]["target"], objective["patch"]["target"]) == ("features", "features")
        assert {key.split(".")[0] for key in heads_of(content)} == {"feature_norm", "cls_norm"}
    resolved = (tmp_path / "a" / "resolved.yaml").read_text()
    assert resolved.count("target: features  # auto") == 2
    steps = {k: v for k, v in FITTED.items() if k != "teacher.heads.kind"}
    keys = {"teacher.source": f"run:{plain}", "objective.patch.target": "prototypes"}
    _, content = distil("c", **steps, **keys)
    assert content["config"]["teacher"]["heads"]["kind"] == "fitted"
    assert content["config"]["objective"]["cls"]["target"] == "features"


def test_targets_are_prototypes_elsewhere(build, source):
    for keys in ({}, {"teacher.mode": "frozen", "teacher.source": source}):
        cfg, _, _ = build(**SHORT | keys)
        assert (cfg.objective.cls.target, cfg.objective.patch.target) == ("prototypes", "prototypes")


def test_the_temperature_in_the_log_is_the_one_of_the_targets(distil, column):
    folder, content = distil("a", **FITTED)
    expected = float(heads_of(content)["heads.patch.temperature"])
    assert column(folder, "teacher_temperature") == pytest.approx([expected] * 2, rel=1e-4)


def test_fitted_heads_have_any_number_of_prototypes(distil):
    _, content = distil("more", **FITTED, **{"heads.prototypes": 12})
    assert heads_of(content)["heads.patch.prototypes"].shape == (12, 128)


def test_kept_targets_are_those_of_the_heads_made(distil, small, source, tmp_path):
    keys = SHORT | FITTED | {"teacher.mode": "frozen", "teacher.source": source}
    cache = {"teacher.cache.path": str(tmp_path / "cache"), "teacher.cache.dtype": "fp32"}
    fill("pretrain/scenes_tiny", small(**keys | cache))
    _, kept = distil("kept", **FITTED, **cache)
    assert kept["teacher"]["state"]["forwards"] == 0
    assert same(weights(kept), weights(distil("plain", **FITTED)[1]))


def test_other_heads_than_those_made_are_another_objective(distil):
    distil("a", **FITTED)
    with pytest.raises(UserError, match=r"teacher.heads.entropy: 0.2 in the checkpoint, 0.5 now"):
        distil("a", resume=True, **FITTED, **{"teacher.heads.entropy": 0.5, "train.steps": 3})


@pytest.mark.parametrize("norm", ["standard", "phi_s"])
def test_features_of_cls_and_patches_are_regressed(build, source, norm):
    """Local crops' CLS-1 regress the teacher's global CLS-1, each written out."""
    from distill.models.vision import ImageOutput
    from distill.objectives.patch_distillation import feature_distance
    from teachers.heads.phi_s import Measurement

    keys = {"teacher.mode": "frozen", "teacher.source": source, "objective.feature_norm": norm}
    _, assembly, batch = build(**SHORT | FEATURES | keys)
    teacher, learner = assembly.teacher, assembly.distiller.student("student")
    assert teacher.heads.heads is None
    clean = teacher.model.image(batch.images())
    if norm == "phi_s":
        measurement = Measurement(teacher.heads)
        measurement.add(ImageOutput(clean.cls, clean.patches))
        measurement.finish()
        teacher.prepared = True
    with torch.no_grad():
        parts = assembly.distiller(batch, 0.07).parts
        target = teacher.heads.cls_norm(clean.cls[:, 0])  # [B, D]
        guess = learner.heads.cls_features(learner.model.image(batch.locals_()).cls[:, 0])  # [B*M, D]
        expected = feature_distance(guess, target.repeat_interleave(2, 0)).mean()
        torch.testing.assert_close(parts["student/cls"], expected)
        view = learner.model.image(batch.images(), batch.mask).patches
        expected = feature_distance(learner.heads.features(view), teacher.heads.feature_norm(clean.patches)).mean()
        torch.testing.assert_close(parts["student/patch"], expected)
    if norm == "phi_s":  # every channel varies alike over the patches it was measured on
        torch.testing.assert_close(
            teacher.heads.feature_norm(clean.patches).var((0, 1), correction=0), torch.ones(128), rtol=0.02, atol=0
        )


@pytest.mark.parametrize("changes", [{}, FITTED, TRAINED, PHI_S], ids=["own", "fitted", "trained", "phi_s"])
def test_counts_are_those_of_the_run_and_check_says_what_is_made(build, small, source, capsys, changes):
    keys = {"teacher.mode": "frozen", "teacher.source": source}
    _, assembly, _ = build(**SHORT | keys | changes)
    overrides = small(**SHORT | keys | changes)
    student, teacher = count_models(load_config("pretrain/scenes_tiny", overrides).config).models
    assert student.heads == receipts(assembly.distiller, assembly.teacher).by_part["student"]["heads"]
    assert teacher.heads == sum(p.numel() for p in assembly.teacher.heads.parameters())
    assert check("pretrain/scenes_tiny", [f"{key}={json.dumps(value)}" for key, value in overrides.items()]) == 0
    out = capsys.readouterr().out
    said = {"own": "its own heads", "fitted": "8 fitted to its features by spherical k-means, 3 batches of 8 images"}
    said |= {"trained": "heads trained on its frozen trunk", None: "features: PHI-S, measured on 3 batches"}
    assert f"targets: {'' if assembly.teacher.kind is None else 'prototypes: '}{said[assembly.teacher.kind]}" in out


def test_the_banner_and_a_line_say_what_is_made(distil, capfd):
    distil("a", **FITTED)
    said = " ".join(capfd.readouterr().err.split())
    assert "prototypes: 8 fitted to its features by spherical k-means" in said
    assert "Preparing the teacher: prototypes: 8 fitted" in said
    assert "Prepared in " in said


def test_too_few_images_are_one_line(distil):
    keys = FITTED | {"heads.tied": True, "teacher.heads.steps": 2, "heads.prototypes": 500}
    with pytest.raises(UserError, match=r"teacher.heads.steps: 2 batches gave 136 CLS tokens and patches for 500"):
        distil("a", **keys)
