"""What students start from: `distill check` refuses what a run would refuse, in the same words, and nothing else."""

from __future__ import annotations

import pytest
import torch

from distill.config.load import load_config
from distill.errors import UserError
from distill.models.loading import save_model
from distill.models.sources.file import save_safetensors
from distill.preflight.report import preflight
from distill.preflight.sketch import sketch_models
from distill.training.assemble import assemble
from distill.training.learner_io import learner_state
from distill.training.stage import start_stage

pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # nothing is copied into shapes

SMALL = {
    "data.scenes.count": 8,
    "heads.prototypes": 32,
    "heads.hidden": 16,
    "heads.bottleneck": 8,
    "students.0.depth": 2,
    "text.layers": 1,
    "eval.tasks": [],
}
CAPTIONS = ["a b c"]


@pytest.fixture
def first(tmp_path):
    """A checkpoint of a run of one student, tiny/8 of 2 blocks, and its model in a file of each kind of ours."""
    config = load_config("pretrain/scenes_tiny", SMALL).config
    built = assemble(config, CAPTIONS)
    learner = built.distiller.students["student"]
    content = {
        "students": {"student": learner_state(learner)},
        "heads_config": vars(config.heads),
        "teacher": {"mode": "ema_head", "feature_width": None, "state": built.teacher.state()},
    }
    torch.save(content, tmp_path / "run.pt")
    save_model(learner.model, tmp_path / "model.pt")
    save_safetensors(learner.model, tmp_path / "model.safetensors")
    return tmp_path


def recipe(changes: dict) -> tuple[str, dict]:
    return "distill/scenes_tiny_student" if "teacher.source" in changes else "pretrain/scenes_tiny", SMALL | changes


def checked(changes: dict) -> list[str]:
    return preflight(load_config(*recipe(changes))).problems


def run(changes: dict) -> None:
    """What a run does before its first step, as far as starts go."""
    config = load_config(*recipe(changes)).config
    built = assemble(config, CAPTIONS)
    if config.train.stage_from:
        start_stage(built, config)


TEACHER, ARCH, DEPTH, INIT = "teacher.source", "students.0.arch", "students.0.depth", "students.0.init"
WORDS = {TEACHER: "run:run.pt"}
MISFITS = [
    (WORDS | {INIT: "teacher", DEPTH: 3}, "blocks 3 here, 2 there. Set students.0.depth=2;"),
    (WORDS | {INIT: "teacher", DEPTH: None}, "blocks 6 here, 2 there. Set students.0.depth=2;"),
    (WORDS | {INIT: "teacher", ARCH: "S/8"}, "width 384 here, 128 there; attention heads 6 here, 2 there"),
    (WORDS | {INIT: "teacher", "vision.gelu": "tanh"}, "was trained with vision.gelu=erf, not tanh"),
    (WORDS | {INIT: "teacher", "vision.position_grid": 4}, "embed.positions is 4x4x128 here, 6x6x128 there"),
    (WORDS | {INIT: "teacher", "captions.cls2": []}, "trunk.reg_token is missing here, 1x1x128 there"),
    (WORDS | {INIT: "layers", DEPTH: 3}, "student 'student' has 3 blocks, the teacher 2: set students.0.depth to 2"),
    (WORDS | {INIT: "layers", "students.0.layers": [0, 9]}, "block 9 does not exist; the teacher's are 0 to 1"),
    (WORDS | {INIT: "layers", ARCH: "S/8"}, "layers does not fit student 'student': width 384 here, 128 there"),
    (WORDS | {INIT: "selection", ARCH: "S/8"}, "S/8 has 384 channels, the teacher tiny/8 only 128"),
    (WORDS | {INIT: "selection", "students.0.layers": [0, 2]}, "block 2 does not exist"),
    (
        WORDS | {"text.init": "teacher", ARCH: "S/8"},
        "text.init: teacher does not fit student 'student': width 384 here",
    ),
    (WORDS | {"text.init": "teacher", "text.layers": 2}, "layers 2 here, 1 there. That text tower has width 128"),
    (WORDS | {"text.init": "selection", "text.layers": 2}, "2 text layers, the teacher 1"),
    ({INIT: "run:run.pt", ARCH: "S/8"}, "width 384 here, 128 there"),
    ({INIT: "model.pt", DEPTH: 1}, "blocks 1 here, 2 there. That model is tiny/8, 2 blocks: use its shape"),
    ({INIT: "file:model.safetensors", DEPTH: 1}, "blocks 1 here, 2 there. That model is tiny/8, 2 blocks"),
    ({"text.init": "model.pt", "text.layers": 2}, "layers 2 here, 1 there"),
    ({"text.init": "file:model.safetensors", "text.tokenizer": "clip"}, "has another tokenizer"),
    ({"train.stage_from": "run.pt", DEPTH: 3}, "student 'student' has other shapes: Missing key(s)"),
    ({"train.stage_from": "run.pt", "heads.prototypes": 64}, "student 'student' has other shapes: size mismatch"),
    ({"train.stage_from": "run.pt", "vision.position_grid": 9}, "students.*, vision.*, text.* and heads.* the values"),
    ({"train.stage_from": "run.pt", "vision.gelu": "tanh"}, "was trained with vision.gelu erf, here it is tanh"),
    ({"train.stage_from": "run.pt", "text.tokenizer": "clip"}, "has another tokenizer"),
    ({"train.stage_from": "run.pt", "students.0.name": "other"}, "has no student 'other'. It has: student"),
    ({"train.stage_from": "model.pt"}, "model.pt holds a model, no run"),
]


@pytest.mark.parametrize(("changes", "expected"), MISFITS, ids=[str(changes) for changes, _ in MISFITS])
def test_what_a_run_would_refuse_is_a_problem_in_the_same_words(first, monkeypatch, changes, expected):
    monkeypatch.chdir(first)
    refused_alike(changes, expected)


def refused_alike(changes: dict, expected: str) -> None:
    (problem,) = checked(changes)
    assert expected in problem
    with pytest.raises(UserError) as refused:
        run(changes)
    assert problem.removeprefix("train.stage_from: ") == str(refused.value)


def test_words_that_are_still_to_be_counted_are_no_tokens_of_another_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    built = assemble(load_config(*recipe({"text.tokenizer": "clip"})).config, CAPTIONS)
    save_model(built.distiller.students["student"].model, tmp_path / "clip.pt")
    refused_alike({"text.init": "clip.pt"}, "text.init: clip.pt has another tokenizer")


FITTING = [
    WORDS | {INIT: "teacher", "text.init": "teacher"},
    WORDS | {INIT: "layers", DEPTH: 1, "text.init": "selection"},
    WORDS | {INIT: "layers", DEPTH: 3, "students.0.layers": [0, 1, 1]},
    WORDS | {INIT: "selection"},
    {INIT: "run:run.pt", "text.init": "run:run.pt"},
    {INIT: "model.pt", "text.init": "file:model.safetensors"},
    {"train.stage_from": "run:run.pt"},
    WORDS | {"train.stage_from": "run:run.pt", "text.init": "teacher"},
    {
        "teacher.mode": "cotrained",
        "teacher.arch": "tiny/8",
        "teacher.depth": 2,
        INIT: "teacher",
        "text.init": "teacher",
    },
]


@pytest.mark.parametrize("changes", FITTING, ids=str)
def test_what_fits_is_no_problem(first, monkeypatch, changes):
    monkeypatch.chdir(first)
    resolved = load_config(*recipe(changes))
    assert preflight(resolved).problems == resolved.warnings == []
    run(changes)


def test_a_stage_of_a_wider_co_trained_teacher_fits_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"teacher.mode": "cotrained", "teacher.arch": "S/8", "teacher.depth": 1}
    changes |= {f"objective.{part}.target": "features" for part in ("cls", "patch")}
    config = load_config(*recipe(changes)).config
    built = assemble(config, CAPTIONS).distiller
    sketched = sketch_models(load_config(*recipe(changes)).config).learners
    for learner, outline in zip([built.students["student"], built.teacher_learner], sketched):
        shapes, theirs = ({n: v.shape for n, v in one.heads.state_dict().items()} for one in (learner, outline))
        assert shapes == theirs
    students, teacher = {"student": learner_state(built.students["student"])}, learner_state(built.teacher_learner)
    torch.save({"students": students, "teacher": {"mode": "cotrained"}, "teacher_learner": teacher}, "wide.pt")
    assert checked(changes | {"train.stage_from": "wide.pt"}) == []


def test_the_epsilon_of_a_text_tower_comes_with_its_weights(first, monkeypatch):
    monkeypatch.chdir(first)
    saved = torch.load("run.pt")
    saved["students"]["student"]["spec"]["text"]["norm_eps"] = 1e-5  # as after a start from TIPS
    torch.save(saved, "tips.pt")
    changes = {"train.stage_from": "tips.pt", "students.0.ema": 0.9}
    assert checked(changes) == []
    config = load_config(*recipe(changes)).config
    built = assemble(config, CAPTIONS)
    start_stage(built, config)
    for model in (built.distiller.student("student").model, built.spares["student"].model):
        assert model.text.config()["norm_eps"] == model.text.norm.eps == 1e-5


def test_each_student_that_does_not_fit_is_named(first, monkeypatch):
    monkeypatch.chdir(first)
    students = [{"name": "a", "arch": "tiny/8", "depth": 2}, {"name": "b", "arch": "S/8", "depth": 2}]
    students += [{"name": "c", "arch": "tiny/8", "depth": 1}]
    changes = {key: value for key, value in SMALL.items() if key != DEPTH}
    changes |= {"students": students, "students.init": "teacher", "text.init": "teacher", TEACHER: "run:run.pt"}
    b, text, c = preflight(load_config("distill/scenes_tiny_student", changes)).problems
    assert b.startswith("students.1.init: teacher does not fit student 'b'")
    assert text.startswith("text.init: teacher does not fit student 'b'")
    assert c.startswith("students.2.init: teacher does not fit student 'c'")


def test_a_stage_and_a_source_are_looked_at_though_the_teacher_is_not_there(first, monkeypatch):
    monkeypatch.chdir(first)
    problems = checked({TEACHER: "run:nowhere", INIT: "no.pt", "train.stage_from": "neither.pt"})
    assert [problem.partition(" ")[0] for problem in problems] == ["students.0.init:", "train.stage_from:", "No"]


def test_what_is_still_to_be_given_is_not_compared():
    open_values = {TEACHER: "???", INIT: "teacher", "text.init": "teacher", "train.stage_from": "???"}
    assert checked(open_values) == []


def test_what_a_run_would_fetch_is_no_problem(first, monkeypatch):
    monkeypatch.chdir(first)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(first / "cache"))
    source, saved = "hf:google/tipsv2-b14", torch.load("run.pt")
    for name in ("features", "cls_features"):  # a first stage with that teacher, of 768 channels
        maps = {f"{name}.weight": torch.zeros(768, 128), f"{name}.bias": torch.zeros(768)}
        saved["students"]["student"]["heads"] |= maps
    torch.save(saved, "regressed.pt")
    changes = {TEACHER: source, "text.init": "teacher", "train.stage_from": "regressed.pt"}
    report = preflight(load_config(*recipe(changes)))
    (note,) = report.counts.notes
    assert report.problems == report.warnings == []
    assert note.startswith(f"{source}: its weights are not on this machine; looked for google/tipsv2-b14 in the cache")
    report = preflight(load_config(*recipe({INIT: source})))
    (warning,) = report.warnings
    assert report.problems == [] and warning.startswith(f"students.0.init: {source}: its weights are not on this")


def test_the_words_of_the_first_stage_are_counted(first, monkeypatch):
    monkeypatch.chdir(first)
    report = preflight(load_config(*recipe({"train.stage_from": "run.pt"})))
    assert report.counts is not None and report.counts.vocabulary == 5
