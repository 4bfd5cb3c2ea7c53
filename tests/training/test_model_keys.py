"""What the keys of `teacher`, `students`, `heads` and `text` do to a run."""

from __future__ import annotations

import pytest
import torch

ONE = {"train.steps": 1, "optim.warmup": 0.0}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_source_is_the_teacher(build, small_run, saved):
    runs = [small_run(f"teacher{seed}", **ONE, seed=seed).folder for seed in (1, 2)]
    for folder in runs:
        _, assembly, _ = build(**{"teacher.mode": "frozen", "teacher.source": f"run:{folder}"})
        content = saved(folder)
        assert equal(assembly.teacher.model.state_dict(), content["students"]["student"]["weights"])
        heads = {k: v for k, v in assembly.teacher.heads.state_dict().items() if k.startswith("heads.")}
        assert equal(heads, {k: v for k, v in content["teacher"]["state"]["heads"].items() if k in heads})
    weights = [saved(folder)["students"]["student"]["weights"]["image.embed.proj.weight"] for folder in runs]
    assert not torch.equal(*weights)


def test_a_cotrained_teacher_has_its_own_shape(build):
    keys = {"teacher.mode": "cotrained", "teacher.arch": "S/8", "teacher.depth": 2}
    _, assembly, _ = build(**keys)
    teacher, student = assembly.distiller.teacher_learner, assembly.distiller.students["student"]
    assert (teacher.model.image.width, teacher.model.image.depth) == (384, 2)
    assert (student.model.image.width, student.model.image.depth) == (128, 1)
    assert teacher.heads.shared.mlp[0].in_features == 384
    _, assembly, _ = build(**keys | {"teacher.arch": "tiny/8", "teacher.depth": None})
    assert assembly.distiller.teacher_learner.model.image.depth == 6  # the size's own


@pytest.mark.parametrize(("tokens", "share"), [("masked", 1), ("all", 0.75)])
def test_a_cotrained_teacher_supervises_its_own_tokens(build, tokens, share):
    keys = {"teacher.mode": "cotrained", "teacher.arch": "tiny/8", "teacher.depth": 1, "teacher.tokens": tokens}
    _, assembly, batch = build(**keys, **{"objective.patch.tokens": "visible"})
    parts = assembly.distiller(batch, 0.07).parts
    expected = share * parts["teacher/patch_masked"] + (1 - share) * parts["teacher/patch_visible"]
    torch.testing.assert_close(parts["teacher/patch"], expected)
    torch.testing.assert_close(parts["student/patch"], parts["student/patch_visible"])


def test_a_cotrained_teacher_has_its_own_learning_rate(small_run, saved, rows):
    keys = {"teacher.mode": "cotrained", "teacher.arch": "tiny/8", "teacher.depth": 1, "optim.lr": 2e-3}
    own = small_run("own", **ONE, **keys, **{"teacher.lr": 3e-4}).folder
    same = small_run("same", **ONE, **keys).folder
    for folder, rate in ((own, 3e-4), (same, 2e-3)):
        assert (rows(folder)[0]["lr/students"], rows(folder)[0]["lr/teacher"]) == pytest.approx((2e-3, rate))
        groups = saved(folder)["optimizers"]["teacher"]["param_groups"]
        assert {group["lr"] for group in groups} == {rate}


@pytest.mark.parametrize("mode", ["ema_head", "ema", "cotrained"])
def test_the_average_moves_by_its_momentum(small_run, saved, mode):
    """At 1 the averaged heads stay where the learner's began; at 0 they are the learner's."""

    def heads(momentum: float) -> tuple[dict, dict]:
        keys = {"teacher.mode": mode, "teacher.momentum.start": momentum, "teacher.momentum.end": momentum}
        keys |= {"teacher.arch": "tiny/8", "teacher.depth": 1} if mode == "cotrained" else {}
        content = saved(small_run(f"m{momentum}", **keys, **{"train.steps": 2, "optim.lr": 1e-2}).folder)
        learner = content["teacher_learner"] or content["students"]["student"]
        mine = {k: v for k, v in content["teacher"]["state"]["heads"].items() if k.startswith("heads.")}
        return mine, {f"heads.{k}": v for k, v in learner["heads"].items()}

    still, learner = heads(1.0)
    assert all((still[name] - learner[name]).abs().max() > 1e-3 for name in still if name.endswith("weight"))
    moving, learner = heads(0.0)
    assert equal(moving, learner)


def test_students_are_known_by_their_names(small_run, saved, rows):
    folder = small_run(**ONE, **{"students.0.name": "pupil"}).folder
    assert {"pupil/contrastive", "pupil/cls", "pupil/patch"} <= rows(folder)[0].keys()
    assert not any(name.startswith("student/") for name in rows(folder)[0])
    assert list(saved(folder)["students"]) == ["pupil"]


def test_heads_have_the_sizes_asked_for(build):
    keys = {"prototypes": 11, "hidden": 7, "bottleneck": 5, "layers": 3}
    for tied in (True, False):
        _, assembly, _ = build(**{f"heads.{k}": v for k, v in keys.items()}, **{"heads.tied": tied})
        for heads in (assembly.distiller.students["student"].heads, assembly.teacher.heads.heads):
            for head in (heads.cls, heads.patch):
                shapes = [tuple(p.shape) for p in head.mlp.parameters() if p.ndim == 2]
                assert shapes == [(7, 128), (7, 7), (5, 7)]
                assert head.prototypes.shape == (11, 5)
            assert (heads.cls is heads.patch) == tied


def test_frozen_towers_are_not_optimised(build, small_run):
    source = small_run("source", **ONE).folder

    def trained(**changes) -> set[str]:
        _, assembly, _ = build(**changes)
        learner = assembly.distiller.students["student"]
        names = {id(p): name for name, p in learner.named_parameters()}
        moving = {names[id(p)] for group in assembly.optimizers["students"].param_groups for p in group["params"]}
        return {".".join(name.split(".")[:2]) for name in moving}

    start = str(source)
    rest = {"model.log_temperature", "heads.shared"}
    assert trained() == {"model.image", "model.text", *rest}
    assert trained(**{"text.init": start, "text.freeze": True}) == {"model.image", *rest}
    assert trained(**{"students.0.init": start, "students.0.freeze": ["vision"]}) == {"model.text", *rest}


def test_dropout_acts_on_texts_in_training(small_run, rows):
    plain, dropped = (rows(small_run(f"d{rate}", **ONE, **{"text.dropout": rate}).folder)[0] for rate in (0.0, 0.5))
    assert plain["student/contrastive"] != dropped["student/contrastive"]
    assert [plain[f"student/{term}"] for term in ("cls", "patch")] == [
        dropped[f"student/{term}"] for term in ("cls", "patch")
    ]


def test_the_seed_gives_the_weights_whatever_the_teacher(build):
    def weights(**changes) -> dict[str, torch.Tensor]:
        return build(**changes)[1].distiller.students["student"].state_dict()

    assert equal(weights(seed=3), weights(seed=3, **{"teacher.mode": "cotrained", "teacher.arch": "S/8"}))
    one, other = weights(seed=3), weights(seed=4)
    assert not torch.equal(one["model.image.embed.proj.weight"], other["model.image.embed.proj.weight"])
