"""Teacher modes: where targets come from, what is shared, what moves, what stays out."""

from __future__ import annotations

import copy

import pytest
import torch

from distill.training.assemble import Assembly
from distill.training.learner import Pixels
from distill.training.receipts import head_only_saving, head_parameters, receipts, saving_table
from distill.views.batch import Batch
from teachers.average import follow, shared_tensors


def step(assembly: Assembly, batch: Batch, momentum: float = 0.5, rate: float = 0.01) -> dict[str, torch.Tensor]:
    output = assembly.distiller(batch, 0.07)
    output.loss.backward()
    for optimizer in assembly.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    assembly.teacher.follow(momentum)
    assembly.teacher.tick(0.9)
    return output.parts


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> bool:
    return any(not torch.equal(before[k], v) for k, v in module.state_dict().items())


@pytest.mark.parametrize("mode", ["ema", "ema_head", "none"])
def test_self_teachers_share_exactly_what_they_say(build, mode):
    _, assembly, batch = build(**{"teacher.mode": mode})
    counts = receipts(assembly.distiller, assembly.teacher)
    step(assembly, batch)
    assert receipts(assembly.distiller, assembly.teacher).shared == counts.shared  # still so after a step
    learner = assembly.distiller.students["student"]
    averaged = {"ema": ["image", "heads"], "ema_head": ["heads"], "none": []}[mode]
    assert counts.averaged == sum(counts.by_part["student"][part] for part in averaged)
    trained = {id(p) for g in assembly.optimizers["students"].param_groups for p in g["params"]}
    held = [p for m in assembly.teacher.modules().values() for p in m.parameters()]
    if mode == "none":
        assert {id(p) for p in learner.heads.parameters()} <= trained
    else:
        assert not any(id(p) in trained or p.requires_grad for p in held)
    assert assembly.teacher.forwards == (1 if mode == "ema" else 0)


def test_averages_follow_by_the_momentum(build):
    _, assembly, batch = build(**{"teacher.mode": "ema"})
    learner, teacher = assembly.distiller.students["student"], assembly.teacher
    name = "blocks.0.mlp.fc1.weight"
    before = dict(teacher.trunk.trunk.named_parameters())[name].clone()
    step(assembly, batch, momentum=0.25)
    after = dict(teacher.trunk.trunk.named_parameters())[name]
    student = dict(learner.model.image.trunk.named_parameters())[name]
    assert not torch.equal(before, student)
    torch.testing.assert_close(after, 0.25 * before + 0.75 * student)


def test_head_only_targets_are_the_clean_pass_through_the_averaged_head(build):
    _, assembly, batch = build()
    step(assembly, batch)  # the averaged head and the student's now differ
    learner, teacher = assembly.distiller.students["student"], assembly.teacher
    output = assembly.distiller(batch, 0.07)
    clean = learner.model.image(batch.images())
    heads = teacher.heads
    logits = heads.heads.patch(clean.patches) - heads.patch_center.center
    torch.testing.assert_close(output.targets.patch.probs(), (logits / 0.07).softmax(-1), rtol=1e-4, atol=1e-6)
    assert not output.targets.patch.probs().requires_grad
    assert not torch.allclose(heads.heads.patch(clean.patches), learner.heads.patch(clean.patches))


def test_loss_of_a_step_is_the_paper_written_out(build):
    """The whole objective against a plain computation from the modules' outputs (equations 1 to 3, appendix A.9)."""
    _, assembly, batch = build(**{"objective.patch.tokens": "masked"})
    learner = assembly.distiller.students["student"]
    with torch.no_grad():
        output = assembly.distiller(batch, 0.05)
        image, text = learner.model.image, learner.model.text
        clean, view = image(batch.images()), image(batch.images(), batch.mask)
        local = image(batch.locals_()).cls[:, 0]
        contrast = 0.0
        for c in range(2):
            v = torch.nn.functional.normalize(clean.cls[:, c].double(), dim=-1)
            t = torch.nn.functional.normalize(text(batch.tokens[:, c], batch.valid[:, c]).double(), dim=-1)
            logits = v @ t.T / learner.model.temperature.double()
            rows = torch.arange(len(logits))
            contrast += -(logits.log_softmax(1)[rows, rows] + logits.log_softmax(0)[rows, rows]).mean() / 4
        heads = assembly.teacher.heads.heads
        target = (heads.patch(clean.patches).double() / 0.05).softmax(-1)
        each = -(target * (learner.heads.patch(view.patches).double() / 0.1).log_softmax(-1)).sum(-1)
        cls_target = (heads.cls(clean.cls[:, 0]).double() / 0.07).softmax(-1).repeat_interleave(2, 0)
        cls = -(cls_target * (learner.heads.cls(local).double() / 0.1).log_softmax(-1)).sum(-1).mean()
    parts = {k: float(v) for k, v in output.parts.items()}
    assert parts["student/contrastive"] == pytest.approx(float(contrast), rel=1e-5)
    assert parts["student/patch"] == pytest.approx(float(each[batch.mask].mean()), rel=1e-5)
    assert parts["student/patch_visible"] == pytest.approx(float(each[~batch.mask].mean()), rel=1e-5)
    assert parts["student/cls"] == pytest.approx(float(cls), rel=1e-5)
    assert float(output.loss) == pytest.approx(float(contrast + cls + 2 * each[batch.mask].mean()), rel=1e-5)


def test_without_masking_the_clean_pass_is_the_view(build):
    _, assembly, batch = build(**{"mask.ratio": 0.0})
    learner = assembly.distiller.students["student"]
    encode = learner.model.image.views
    made = []
    learner.model.image.views = lambda *given: made.append(encode(*given)) or made[-1]
    assembly.distiller(batch, 0.07)
    assert [(v.masked is None, v.crops is None) for v in made] == [(True, False)]
    assert not learner.model.image.embed.mask_token.requires_grad


def test_packed_and_separate_passes_are_one_step(build):
    """The whole step with drop path so small that nothing is dropped, which turns packing off, and without it."""
    found = []
    for drop_path in (0.0, 1e-12):
        _, assembly, batch = build(**{"vision.drop_path": drop_path, "students.0.depth": 2})
        image = assembly.distiller.student("student").model.image
        assert image.packs == (drop_path == 0)
        output = assembly.distiller(batch, 0.07)
        output.loss.backward()
        found.append((output, {n: p.grad for n, p in assembly.distiller.named_parameters()}))
    (one, ours), (other, theirs) = found
    for name, part in one.parts.items():
        torch.testing.assert_close(part, other.parts[name], rtol=1e-5, atol=1e-6)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize(("mode", "steady"), [("ema", True), ("ema_head", False), ("none", False)])
def test_dropped_blocks_reach_the_targets_where_the_trunk_is_shared(build, mode, steady):
    """As the help of vision.drop_path says."""
    _, assembly, batch = build(**{"teacher.mode": mode, "vision.drop_path": 0.5, "students.0.depth": 4})
    assembly.distiller.train()
    torch.manual_seed(0)
    with torch.no_grad():
        once, again = (assembly.distiller(batch, 0.07).targets.cls for _ in range(2))
    assert torch.equal(once, again) == steady


def test_a_frozen_teacher_stays_out_and_serves_several_students_with_one_pass(build, small_run):
    teacher_run = small_run("teacher", **{"train.steps": 1})
    two = [{"name": "one", "arch": "tiny/8", "depth": 1}, {"name": "two", "arch": "tiny/8", "depth": 2}]
    _, assembly, batch = build(
        **{"teacher.mode": "frozen", "teacher.source": f"run:{teacher_run.folder}", "students": two}
    )
    before = snapshot(assembly.teacher.model)
    centre = assembly.teacher.heads.patch_center.center.clone()
    parts = [step(assembly, batch) for _ in range(3)][-1]
    assert assembly.teacher.forwards == 3
    assert {"one/patch", "two/patch"} <= parts.keys()
    assert not moved(before, assembly.teacher.model)
    assert torch.equal(centre, assembly.teacher.heads.patch_center.center)
    assert centre.abs().sum() > 0  # the teacher's own centre came with it
    names = [n for n, _ in assembly.distiller.named_parameters()]
    assert all(n.startswith("students.") for n in names)
    assert assembly.teacher.state() == {"forwards": 3, "prepared": True, "heads": {}}
    assert receipts(assembly.distiller, assembly.teacher).frozen == sum(
        p.numel() for m in assembly.teacher.modules().values() for p in m.parameters()
    )


def test_students_of_several_sizes_learn_from_one_pass_of_the_teacher(build, small_run):
    """A wide and a narrow one, as L and B: every pass through the teacher's trunk is seen, and every loss falls."""
    source = small_run("teacher", **{"train.steps": 1}).folder
    sizes = [{"name": "l", "arch": "S/8", "depth": 2}, {"name": "b", "arch": "tiny/8", "depth": 1}]
    keys = {"teacher.mode": "frozen", "teacher.source": f"run:{source}", "students": sizes, "mask.ratio": 0.0}
    _, assembly, batch = build(**keys)
    seen = []
    assembly.teacher.model.image.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    start = {name: snapshot(assembly.distiller.student(name)) for name in ("l", "b")}
    parts = [step(assembly, batch, rate=3e-4) for _ in range(5)]
    assert seen == [len(batch)] * 5  # one pass a step, not one a student
    assert [assembly.distiller.student(name).model.image.width for name in ("l", "b")] == [384, 128]
    for name in ("l", "b"):
        assert moved(start[name], assembly.distiller.student(name))
        assert parts[-1][f"{name}/patch"] < parts[0][f"{name}/patch"]
        assert parts[-1][f"{name}/cls"] < parts[0][f"{name}/cls"]


def test_a_student_does_not_start_where_its_teacher_started(build, small_run):
    folder = small_run("t", **{"teacher.mode": "ema"}).folder
    _, alone, _ = build(**{"teacher.mode": "ema"})  # as the teacher's run began: all seeds are alike
    frozen = {"teacher.mode": "frozen", "teacher.source": f"run:{folder}"}
    _, distilled, _ = build(**frozen)
    _, masked, _ = build(**frozen, **{"objective.patch.tokens": "masked"})

    def drawn(assembly: Assembly) -> dict[str, torch.Tensor]:
        tensors = snapshot(assembly.distiller.students["student"])
        return {name: value for name, value in tensors.items() if value.numel() > 1 and value.float().std() > 0}

    first, second, third = map(drawn, (alone, distilled, masked))
    assert len(first) > 20
    assert not [name for name in first if torch.equal(first[name], second[name])]
    assert all(torch.equal(second[name], third[name]) for name in second)


def test_a_frozen_text_tower_from_the_teacher_is_taken_over_and_kept(build, small_run):
    teacher_run = small_run("teacher", **{"train.steps": 1})
    _, assembly, batch = build(
        **{
            "teacher.mode": "frozen",
            "teacher.source": f"run:{teacher_run.folder}",
            "text.init": "teacher",
            "text.freeze": True,
        },
    )
    text = assembly.distiller.student("student").model.text
    for name, value in assembly.teacher.model.text.state_dict().items():
        assert torch.equal(value, text.state_dict()[name]), name
    before = snapshot(text)
    step(assembly, batch)
    assert not moved(before, text)


def test_a_cotrained_teacher_trains_with_its_own_optimiser(build):
    _, assembly, batch = build(
        **{"teacher.mode": "cotrained", "teacher.arch": "tiny/8", "teacher.depth": 2, "teacher.lr": 1e-2}
    )
    assert set(assembly.optimizers) == {"students", "teacher"}
    learner = assembly.distiller.teacher_learner
    before, student = snapshot(learner), snapshot(assembly.distiller.students["student"])
    parts = step(assembly, batch)
    assert moved(before, learner)
    assert moved(student, assembly.distiller.students["student"])
    assert {"teacher/contrastive", "teacher/patch", "student/patch"} <= parts.keys()
    assert parts["teacher/patch"] != parts["student/patch"]


def test_students_send_no_gradient_into_a_cotrained_teacher(build):
    changes = {"teacher.mode": "cotrained", "teacher.arch": "tiny/8"}
    _, assembly, batch = build(**changes)
    assembly.distiller(batch, 0.07).loss.backward()
    both = {n: p.grad.clone() for n, p in assembly.distiller.teacher_learner.named_parameters() if p.grad is not None}
    _, alone, batch = build(**changes)
    pixels = Pixels.of(batch)
    learner = alone.distiller.teacher_learner
    views = learner.views(pixels)
    targets = alone.teacher.targets(pixels.images, views.clean, 0.07)
    learner.losses(pixels, views, learner.features(batch, views.clean), targets).total.backward()
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, both[name])


def test_no_loss_needs_a_teacher_for_plain_contrast(build):
    _, assembly, batch = build(**{"objective.patch.weight": 0.0, "objective.cls.weight": 0.0})
    parts = step(assembly, batch)
    assert set(parts) == {"student/contrastive"}
    assert assembly.distiller.students["student"].heads is None
    assert assembly.teacher.modules() == {}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective.contrastive.weight": 0.0},
        {"objective.cls.weight": 0.0},
        {"objective.patch.weight": 0.0},
        {"heads.tied": False},
        {"heads.tied": False, "objective.cls.weight": 0.0},
        {"heads.tied": False, "objective.patch.weight": 0.0},
        {"mask.ratio": 0.0},
        {"objective.patch.target": "features"},
        {"objective.patch.target": "features", "objective.cls.weight": 0.0},
        {"objective.patch.target": "features", "objective.cls.target": "features"},
        {"objective.patch.target": "features", "heads.tied": False},
        {"objective.cls.target": "features", "heads.tied": False},
        {"objective.cls.target": "features", "objective.patch.weight": 0.0},
        {"objective.contrastive.loss": "sigmoid"},
        {"objective.patch.weight": 0.0, "objective.cls.weight": 0.0},
        {"captions.cls2": []},
        {"teacher.mode": "none"},
        {"teacher.mode": "ema"},
        {"teacher.mode": "cotrained", "teacher.arch": "tiny/8"},
        {"teacher.mode": "cotrained", "teacher.arch": "tiny/8", "objective.contrastive.weight": 0.0},
        {"objective.patch.balance": "sinkhorn", "objective.cls.balance": "sinkhorn"},
    ],
    ids=lambda c: " ".join(f"{k.split('.', 1)[-1]}={v}" for k, v in c.items()) or "default",
)
def test_every_trained_parameter_gets_a_gradient(build, changes):
    """So that gradient synchronisation needs no search for unused parameters."""
    _, assembly, batch = build(**changes)
    assembly.distiller(batch, 0.07).loss.backward()
    without = [n for n, p in assembly.distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    frozen = [n for n, p in assembly.distiller.named_parameters() if not p.requires_grad and p.grad is not None]
    assert frozen == []


def test_sharing_is_found_and_averages_touch_buffers_too():
    a, b = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    assert shared_tensors(a, b) == []
    b.weight = a.weight
    assert shared_tensors(a, b) == ["weight"]
    c = copy.deepcopy(a)
    a.running_mean.fill_(5)
    follow(c, a, 0.5)
    assert c.running_mean.tolist() == [5, 5, 5]


def test_head_sizes_that_give_the_papers_42_percent():
    trunk, width = 86_310_144, 768
    table = {label: saving for label, _, saving in saving_table(trunk, width)}
    assert table["one shared head, 32,768 prototypes"] == pytest.approx(0.427, abs=5e-4)
    assert table["two heads, 8,192 each"] == pytest.approx(0.419, abs=5e-4)
    assert table["two heads, 32,768 each"] == pytest.approx(0.373, abs=5e-4)


def test_head_parameters_count_the_built_heads(build):
    cfg, assembly, _ = build(**{"heads.tied": False})
    heads = assembly.distiller.students["student"].heads
    assert sum(p.numel() for p in heads.parameters()) == head_parameters(128, cfg.heads)
    assert head_only_saving(100, 0) == 0.5
