"""What the keys of `objective` do: losses written out, weights, temperatures, balancing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

ONE = {"train.steps": 1, "optim.warmup": 0.0}


def test_weights_of_the_losses(build):
    weights = {"contrastive": 0.5, "cls": 3.0, "patch": 7.0}
    _, assembly, batch = build(**{f"objective.{name}.weight": value for name, value in weights.items()})
    output = assembly.distiller(batch, 0.07)
    parts = {name: output.parts[f"student/{name}"] for name in weights}
    assert len({round(float(value), 3) for value in parts.values()}) == 3
    torch.testing.assert_close(output.loss, sum(weights[name] * parts[name] for name in weights))


@pytest.mark.parametrize("name", ["contrastive", "cls", "patch"])
def test_a_weight_of_zero_leaves_the_loss_out(build, name):
    _, assembly, batch = build(**{f"objective.{name}.weight": 0.0})
    parts = assembly.distiller(batch, 0.07).parts
    assert {"contrastive", "cls", "patch"} - {term.split("/")[1] for term in parts} == {name}


@pytest.mark.parametrize(("tokens", "shares"), [("masked", (1, 0)), ("visible", (0, 1)), ("all", (0.75, 0.25))])
def test_tokens_supervised(build, tokens, shares):
    _, assembly, batch = build(**{"objective.patch.tokens": tokens})
    parts = assembly.distiller(batch, 0.07).parts
    masked, visible = parts["student/patch_masked"], parts["student/patch_visible"]
    assert abs(masked - visible) > 1e-4
    torch.testing.assert_close(parts["student/patch"], shares[0] * masked + shares[1] * visible)


def test_temperatures(build):
    """Patch and CLS cross-entropies written out, with temperatures that are nobody's default."""
    keys = {"patch.student_temperature": 0.3, "cls.student_temperature": 0.2, "cls.teacher_temperature": 0.05}
    _, assembly, batch = build(**{f"objective.{key}": value for key, value in keys.items()})
    learner, heads = assembly.distiller.students["student"], assembly.teacher.heads.heads
    with torch.no_grad():
        parts = assembly.distiller(batch, 0.04).parts
        image = learner.model.image
        clean, view = image(batch.images()), image(batch.images(), batch.mask)
        target = (heads.patch(clean.patches) / 0.04).softmax(-1)
        patch = -(target * (learner.heads.patch(view.patches) / 0.3).log_softmax(-1)).sum(-1).mean()
        target = (heads.cls(clean.cls[:, 0]) / 0.05).softmax(-1).repeat_interleave(2, 0)
        logits = learner.heads.cls(image(batch.locals_()).cls[:, 0])
        cls = -(target * (logits / 0.2).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(parts["student/patch"], patch)
    torch.testing.assert_close(parts["student/cls"], cls)


def test_the_teacher_temperature_rises(small_run, rows, column):
    ramp = {"start": 0.02, "end": 0.06, "warmup": 0.5}
    keys = {f"objective.patch.teacher_temperature.{name}": value for name, value in ramp.items()}
    folder = small_run(**keys).folder
    assert column(folder, "teacher_temperature") == pytest.approx([0.02, 0.04, 0.06, 0.06])
    constant = {"start": 0.06, "end": 0.06}
    keys = {f"objective.patch.teacher_temperature.{name}": value for name, value in constant.items()}
    other = small_run("b", **ONE, **keys).folder
    # sharper targets have less entropy: the first step's loss tells them apart, the others' first steps are the same
    first, second = rows(folder)[0], rows(other)[0]
    assert first["student/cls"] == second["student/cls"]
    assert first["student/patch"] != second["student/patch"]


def test_feature_targets(build):
    """A projection of the student's patches regresses the teacher's clean ones, standardised by channel."""
    _, assembly, batch = build(**{"objective.patch.target": "features"})
    learner = assembly.distiller.students["student"]
    with torch.no_grad():
        parts = assembly.distiller(batch, 0.07).parts
        clean = learner.model.image(batch.images()).patches
        view = learner.model.image(batch.images(), batch.mask).patches
        flat = clean.flatten(0, 1)  # [B*N, D]
        target = (clean - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-6).sqrt()
        guess = learner.heads.features(view)
        gap = (guess - target).abs()
        smooth = torch.where(gap < 1, gap.square() / 2, gap - 0.5).mean(-1)
        each = 1 - (F.normalize(guess, dim=-1) * F.normalize(target, dim=-1)).sum(-1) + smooth
    torch.testing.assert_close(parts["student/patch"], each.mean(), rtol=1e-4, atol=1e-5)
    _, prototypes, _ = build()
    assert prototypes.distiller.students["student"].heads.features is None


@pytest.mark.parametrize("term", ["patch", "cls"])
def test_sinkhorn_evens_out_the_use_of_prototypes(build, term):
    def use(balance: str) -> torch.Tensor:
        _, assembly, batch = build(**{f"objective.{term}.balance": balance, "heads.prototypes": 4})
        targets = assembly.distiller(batch, 0.07).targets
        if term == "cls":
            return targets.cls.mean(0)  # [K]
        return targets.patch.chunk(slice(None)).mean(0)

    even, centred = use("sinkhorn"), use("center")
    assert (even - 1 / 4).abs().max() < 0.02
    assert (centred - 1 / 4).abs().max() > 0.05


def test_the_centre_moves_by_its_momentum(small_run, saved):
    """After one step from zero the centre is (1 - momentum) times the mean logits."""
    slow, fast = (
        saved(small_run(name, **ONE, **{"objective.center_momentum": momentum}).folder)["teacher"]["state"]["heads"]
        for name, momentum in (("slow", 0.9), ("fast", 0.5))
    )
    for name in ("cls_center.center", "patch_center.center"):
        assert slow[name].abs().max() > 0
        torch.testing.assert_close(fast[name], 5 * slow[name])


def test_sigmoid_contrast(build):
    """SigLIP's loss over all pairs, with its bias of -10 at the start."""
    _, assembly, batch = build(**{"objective.contrastive.loss": "sigmoid"})
    learner = assembly.distiller.students["student"]
    expected = []
    with torch.no_grad():
        clean = learner.model.image(batch.images())
        for c in range(2):
            image = F.normalize(clean.cls[:, c], dim=-1)
            text = F.normalize(learner.model.text(batch.tokens[:, c], batch.valid[:, c]), dim=-1)
            logits = image @ text.T / 0.07 - 10
            sign = 2 * torch.eye(len(logits)) - 1
            expected.append(-(sign * logits).sigmoid().log().sum() / len(logits))
        parts = assembly.distiller(batch, 0.07).parts
    torch.testing.assert_close(parts["student/contrastive"], torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
    assert build()[1].distiller.students["student"].logit_bias is None


def test_the_least_temperature(small_run, saved):
    sharp = {"objective.contrastive.temperature": 0.02, "optim.lr": 1e-9}
    first = small_run("first", **ONE, **sharp).folder
    least = {"objective.contrastive.min_temperature": 0.05, "optim.lr": 1e-9}
    second = small_run("second", **ONE, **least, **{"train.stage_from": str(first)}).folder
    found = [saved(f)["students"]["student"]["weights"]["log_temperature"].exp().item() for f in (first, second)]
    assert found == pytest.approx([0.02, 0.05])
