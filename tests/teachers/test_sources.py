"""Runs of every mode as frozen teachers: which trunk, heads and centres teach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.errors import UserError
from teachers.sources import open_teacher


@pytest.fixture
def train(small_run, saved):
    """Runs two steps: `train(name, **changes) -> (folder, content of its checkpoint)`."""

    def start(name: str, **changes) -> tuple[Path, dict]:
        folder = small_run(name, **{"train.steps": 2, "train.batch": 4, "data.scenes.count": 32} | changes).folder
        return folder, saved(folder)

    return start


def same(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[k], state[k]) for k in own)


def test_head_only_run_teaches_with_its_trunk_averaged_heads_and_centres(train):
    folder, saved = train("a")
    opened = open_teacher(f"run:{folder}")
    assert same(opened.model, saved["students"]["student"]["weights"])
    assert same(opened.heads, saved["teacher"]["state"]["heads"])
    assert not same(opened.heads.heads, saved["students"]["student"]["heads"])
    line = opened.line()
    assert opened.sha256[:12] in line
    assert "2 CLS + patches of 8 px" in line
    assert "4x4" in line


def test_full_average_teaches_with_the_averaged_trunk(train):
    folder, saved = train("a", **{"teacher.mode": "ema"})
    opened = open_teacher(f"run:{folder}")
    assert same(opened.model.image, saved["teacher"]["state"]["trunk"])
    assert same(opened.heads, saved["teacher"]["state"]["heads"])
    named = open_teacher(f"run:{folder}#teacher")
    assert same(named.model, opened.model.state_dict())
    assert same(named.heads, opened.heads.state_dict())
    student = {k: v for k, v in saved["students"]["student"]["weights"].items() if k.startswith("text.")}
    assert same(opened.model.text, {k.removeprefix("text."): v for k, v in student.items()})


def test_students_that_followed_another_teach_with_their_own_heads(train):
    teacher, _ = train("teacher")
    distilled = {"teacher.mode": "frozen", "teacher.source": f"run:{teacher}"}
    for changes in (distilled, {"teacher.mode": "cotrained", "teacher.arch": "tiny/8", "teacher.depth": 2}):
        folder, saved = train(changes["teacher.mode"], **changes)
        opened = open_teacher(f"run:{folder}")
        assert same(opened.heads.heads, saved["students"]["student"]["heads"])
        assert opened.heads.patch_center.center.abs().sum() == 0
    opened = open_teacher(f"run:{folder}#teacher")
    assert opened.model.image.depth == 2
    assert same(opened.heads, saved["teacher"]["state"]["heads"])


def test_a_run_without_averages_teaches_with_the_students_heads(train):
    folder, saved = train("a", **{"teacher.mode": "none"})
    assert same(open_teacher(f"run:{folder}").heads.heads, saved["students"]["student"]["heads"])


def test_a_run_without_heads_has_none_of_its_own_and_serves_features(train):
    plain, _ = train("plain", **{"objective.patch.weight": 0.0, "objective.cls.weight": 0.0})
    assert open_teacher(f"run:{plain}").heads is None
    frozen = {"teacher.mode": "frozen", "teacher.source": f"run:{plain}"}
    with pytest.raises(UserError, match=r"has no prototype heads. Set teacher.heads.kind=fitted or trained"):
        train("b", **frozen, **{"teacher.heads.kind": "own"})
    features = {"objective.patch.target": "features", "objective.cls.weight": 0.0}
    _, saved = train("c", **frozen, **features)
    assert saved["teacher"]["state"]["heads"]["feature_norm.ticks"] == 2


def test_a_head_without_a_loss_does_not_teach(train):
    patches, _ = train("patches", **{"objective.cls.weight": 0.0})
    frozen = {"teacher.mode": "frozen", "teacher.source": f"run:{patches}"}
    with pytest.raises(UserError, match=r"objective.cls.weight is above 0, .* no cls head to teach with. Set .*fitted"):
        train("both", **frozen)
    train("one", **frozen, **{"objective.cls.weight": 0.0})
    train("fitted", **frozen, **{"teacher.heads.kind": "fitted", "teacher.heads.steps": 10})


def test_the_patch_centre_is_measured_under_sinkhorn_too(train):
    folder, _ = train("a", **{"objective.patch.balance": "sinkhorn"})
    heads = open_teacher(f"run:{folder}").heads
    assert heads.patch_center.center.abs().sum() > 0


def test_bad_sources_and_other_heads_are_one_line(train, tmp_path):
    with pytest.raises(UserError, match=r"Unknown kind of source 'rnu'. Did you mean 'run'"):
        open_teacher("rnu:x")
    with pytest.raises(UserError, match=r"No run or checkpoint at"):
        open_teacher(f"run:{tmp_path / 'nowhere'}")
    folder, _ = train("a")
    with pytest.raises(UserError, match=r"Unknown student 'x'"):
        open_teacher(f"run:{folder}#x")
    with pytest.raises(UserError, match=r"heads.prototypes=64, but .* have 32. Set heads.prototypes=32"):
        train(
            "b",
            **{"teacher.mode": "frozen", "teacher.source": f"run:{folder}", "heads.prototypes": 64},
        )
