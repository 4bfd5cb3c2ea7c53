"""The spare average of a student: what it is, that it costs training nothing, and where it can be used."""

from __future__ import annotations

import json

import pytest
import torch

import distill
from distill.errors import UserError
from distill.models.sources import load
from distill.training.receipts import receipts
from distill.training.stage import start_stage
from teachers.sources import open_teacher

ONE = {"train.steps": 1, "optim.warmup": 0.0, "optim.lr": 1e-2}


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}")


def test_the_average_is_that_of_the_weights_after_each_step(small_run, build, saved):
    """m (m w0 + (1 - m) w1) + (1 - m) w2, with the weights kept after each of two steps of two micro-batches."""
    changes = {**ONE, "students.0.ema": 0.25, "train.accumulate": 2, "optim.schedule": "constant"}
    start = build(**changes)[1].distiller.student("student").model.state_dict()
    first = saved(small_run("one", **changes).folder)["students"]["student"]
    second = saved(small_run("two", **changes | {"train.steps": 2}).folder)["students"]["student"]
    assert not torch.equal(start["image.embed.proj.weight"], first["weights"]["image.embed.proj.weight"])
    once = {name: 0.25 * start[name] + 0.75 * first["weights"][name] for name in start}
    close(first["ema"], once)
    close(second["ema"], {name: 0.25 * once[name] + 0.75 * second["weights"][name] for name in start})


def test_training_goes_on_as_without_it(small_run, saved):
    runs = [small_run(name, **ONE, **{"students.0.ema": ema}).folder for name, ema in (("a", None), ("b", 0.9))]
    plain, followed = map(saved, runs)
    assert plain["students"]["student"]["ema"] is None
    for part in ("weights", "heads"):
        mine, theirs = (content["students"]["student"][part] for content in (plain, followed))
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(UserError, match=r"has no average of 'student', as its students\.\*\.ema was null"):
        load(f"{runs[0]}#student.ema")


def test_it_takes_no_gradient_and_is_counted(build):
    _, assembly, batch = build(**{"students.0.ema": 0.9})
    spare = assembly.spares["student"]
    assembly.distiller(batch, 0.07).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in spare.model.parameters())
    assert not spare.model.training
    assert not any(p is q for p in assembly.distiller.parameters() for q in spare.model.parameters())
    without = receipts(assembly.distiller, assembly.teacher)
    counts = receipts(assembly.distiller, assembly.teacher, assembly.spares)
    size = sum(p.numel() for p in spare.model.parameters())
    assert counts.averaged == without.averaged + size
    assert counts.by_part["student"]["spare"] == size
    assert (counts.trained, counts.frozen) == (without.trained, without.frozen)


def test_it_is_evaluated_live_and_loaded_by_its_name(small_run, saved):
    changes = {**ONE, "students.0.ema": 0.5, "eval.tasks": ["retrieval"], "eval.samples": 8}
    folder = small_run(**changes).folder
    content = saved(folder)["students"]["student"]
    results = json.loads((folder / "evals" / "step_00000001.json").read_text())
    assert set(results) == {"student", "student.ema"}
    model = distill.load(f"run:{folder}#student.ema")
    close(dict(model.state_dict()), content["ema"])
    close(dict(load(f"{folder}#student").state_dict()), content["weights"])
    opened = open_teacher(f"run:{folder}#student.ema")
    close(dict(opened.model.state_dict()), content["ema"])
    assert opened.prototypes == 32  # with the run's averaged heads
    with pytest.raises(UserError, match="Unknown student 'other'"):
        load(f"{folder}#other.ema")


def test_it_teaches_with_its_own_trunk_beside_an_averaged_teacher(small_run, saved):
    """In mode ema the run's teacher is a trunk of its own: the spare average must not be taken for it."""
    folder = small_run(**ONE, **{"teacher.mode": "ema", "students.0.ema": 0.5}).folder
    content = saved(folder)
    averaged = content["teacher"]["state"]["trunk"]
    close(dict(open_teacher(f"run:{folder}#student.ema").model.state_dict()), content["students"]["student"]["ema"])
    close(dict(open_teacher(f"run:{folder}#student").model.image.state_dict()), averaged)


def test_a_second_stage_goes_on_from_the_first_ones_average(small_run, build, saved, tmp_path):
    content = saved(small_run(**ONE, **{"students.0.ema": 0.5}).folder)
    student = content["students"]["student"]
    for kept, expected in ((student["ema"], student["ema"]), (None, student["weights"])):
        student["ema"] = kept
        torch.save(content, tmp_path / "stage.pt")
        cfg, assembly, _ = build(**{"students.0.ema": 0.9, "train.stage_from": str(tmp_path / "stage.pt")})
        start_stage(assembly, cfg)
        close(dict(assembly.spares["student"].model.state_dict()), expected)
