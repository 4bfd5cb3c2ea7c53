"""Parameter counts without memory, against the paper's and against the models that a run builds."""

from __future__ import annotations

import pytest
import torch

from distill.config.load import load_config
from distill.errors import UserError
from distill.models.loading import pack_model
from distill.preflight.counts import count_models
from distill.training.assemble import assemble
from distill.training.receipts import receipts

SMALL = {
    "heads.prototypes": 64,
    "heads.hidden": 16,
    "heads.bottleneck": 8,
    "students.0.depth": 2,
    "text.layers": 1,
    "data.scenes.count": 64,
}


def counts_of(recipe: str, changes: dict):
    return count_models(load_config(recipe, changes).config)


@pytest.mark.parametrize(
    ("arch", "image", "text"), [("B/14", 86.3, 109.6), ("L/14", 304.0, 183.9), ("g/14", 1135.8, 389.1)]
)
def test_towers_are_the_papers_sizes(arch, image, text):
    (model,) = counts_of("pretrain/tipsv2_g14", {"students.0.arch": arch}).models
    assert round(model.image / 1e6, 1) == image
    assert round(model.text / 1e6, 1) == text


def test_two_heads_are_twice_one():
    one = counts_of("pretrain/scenes_tiny", SMALL).models[0].heads
    two = counts_of("pretrain/scenes_tiny", {**SMALL, "heads.tied": False}).models[0].heads
    assert one == 128 * 16 + 16 + 16 * 16 + 16 + 16 * 8 + 8 + 64 * 8
    assert two == 2 * one


CHANGES = [
    {"teacher.mode": "ema_head"},
    {"teacher.mode": "ema"},
    {"teacher.mode": "none"},
    {"teacher.mode": "cotrained", "teacher.arch": "tiny/8", "teacher.depth": 3},
    {"teacher.mode": "ema", "heads.tied": False},
    {"objective.patch.target": "features"},
    {"objective.patch.target": "features", "objective.cls.target": "features"},
    {"objective.contrastive.weight": 0},
    {"objective.contrastive.loss": "sigmoid"},
    {"objective.patch.weight": 0},
    {"mask.ratio": 0},
    {"objective.patch.weight": 0, "objective.cls.weight": 0, "views.locals": 0},
    {"captions.cls2": []},
    {"students.0.ema": 0.9},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_receipts_are_those_of_the_run(changes):
    config = load_config("pretrain/scenes_tiny", {**SMALL, **changes}).config
    config.text.tokenizer = "words"
    counted = count_models(config)
    built = assemble(config, [" ".join(f"w{i}" for i in range(counted.vocabulary - 2))])
    assert built.tokenizer.vocabulary == counted.vocabulary
    truth = receipts(built.distiller, built.teacher, built.spares)
    assert (counted.trained, counted.averaged, counted.frozen) == (truth.trained, truth.averaged, truth.frozen)


@pytest.fixture
def teacher_run(tmp_path):
    """A checkpoint with what the counts need of a run: one student and its heads' sizes."""
    config = load_config("pretrain/scenes_tiny", SMALL).config
    built = assemble(config, ["a b c"])
    student = built.distiller.students["student"].model
    content = {
        "students": {"student": pack_model(student)},
        "heads_config": vars(config.heads),
        "teacher": {"mode": "ema_head", "feature_width": None},
    }
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "step_0000001.pt")
    return tmp_path, student


def test_a_frozen_teacher_is_counted_from_its_checkpoint(teacher_run):
    folder, student = teacher_run
    changes = {**SMALL, "teacher.source": f"run:{folder}"}
    counted = counts_of("distill/scenes_tiny_student", changes)
    own, teacher = counted.models
    assert (teacher.role, teacher.trained, teacher.trains_image) == ("teacher (frozen)", 0, False)
    assert teacher.image == sum(p.numel() for p in student.image.parameters())
    assert teacher.heads == own.heads
    assert counted.frozen >= teacher.image + teacher.text + teacher.heads
    assert counted.averaged == 0


def test_a_text_tower_taken_over_has_the_teachers_vocabulary(teacher_run):
    folder, student = teacher_run
    changes = {**SMALL, "teacher.source": f"run:{folder}", "text.init": "teacher"}
    counted = counts_of("distill/scenes_tiny_student", changes)
    assert counted.vocabulary == student.tokenizer.vocabulary == 5
    assert counted.models[0].text == counted.models[1].text
    assert "run:" in counted.teacher and "own heads, 64 prototypes" in counted.teacher


def test_a_teacher_that_does_not_fit_is_refused(teacher_run):
    folder, _ = teacher_run
    source = {**SMALL, "teacher.source": f"run:{folder}"}
    with pytest.raises(UserError, match=r"have 64. Set heads\.prototypes=64"):
        counts_of("distill/scenes_tiny_student", {**source, "heads.prototypes": 128})
    with pytest.raises(UserError, match="Unknown student 'other'"):
        counts_of("distill/scenes_tiny_student", {**source, "teacher.source": f"run:{folder}#other"})
    with pytest.raises(UserError, match="No run or checkpoint at"):
        counts_of("distill/scenes_tiny_student", {**source, "teacher.source": "run:nowhere"})


def test_open_values_are_assumed_and_said():
    counted = counts_of("distill/l14_b14_from_g14", {})
    assert counted.vocabulary == 32_000
    assert len(counted.models) == 2
    assert len(counted.notes) == 2
