"""Which tokens are supervised, and what the mean is."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill.errors import UserError
from distill.objectives.patch_distillation import FeatureNorm, feature_patch_loss, prototype_patch_loss, supervised
from distill.objectives.prototypes import ReadyTargets

# Unequal numbers of masked patches: 5, 1 and 0 of 6.
MASK = torch.tensor([[1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.fixture
def case(unit, targets, golden):
    """Student `[3, 6, 5]`, directions `[11, 5]`, targets, and every token's loss `[3, 6]` from plain loops."""
    student, directions, made = unit(3, 6, 5), unit(11, 5), targets(3, 6)
    each = np.zeros((3, 6))
    for b in range(3):
        for n in range(6):
            y = golden.centred(made.bottleneck[b, n].numpy(), made.directions.numpy(), made.center.numpy(), 0.07)
            each[b, n] = golden.cross_entropy(student[b, n].numpy(), directions.numpy(), y, 0.1)
    return student.requires_grad_(), directions.requires_grad_(), made, each


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("tokens", ["masked", "visible", "all"])
def test_the_total_is_one_uniform_mean_over_supervised_tokens(case, tokens, ready):
    student, directions, targets, each = case
    targets = ReadyTargets(targets.probs()) if ready else targets
    result = prototype_patch_loss(student, directions, targets, MASK, tokens, 0.1)
    mask = MASK.numpy()
    masked, visible = each[mask].sum() / 6, each[~mask].sum() / 12
    expected = {"masked": masked, "visible": visible, "all": each.sum() / 18}[tokens]
    assert result.total.item() == pytest.approx(expected, rel=1e-12)
    assert result.masked.item() == pytest.approx(masked, rel=1e-12)  # both parts, whatever is supervised
    assert result.visible.item() == pytest.approx(visible, rel=1e-12)
    assert not result.masked.requires_grad
    assert not result.visible.requires_grad


def test_it_is_none_of_the_other_means(case):
    student, directions, targets, each = case
    mask = MASK.numpy()
    total = prototype_patch_loss(student, directions, targets, MASK, "all", 0.1).total.item()
    assert abs(each[mask].mean() + each[~mask].mean() - total) > 0.1
    assert abs((each[mask].mean() + each[~mask].mean()) / 2 - total) > 0.01
    per_image = np.mean([each[b][mask[b]].mean() for b in (0, 1)])  # a mean per image, then over images
    assert abs(per_image - prototype_patch_loss(student, directions, targets, MASK, "masked", 0.1).total.item()) > 0.01


@pytest.mark.parametrize("tokens", ["masked", "visible", "all"])
def test_every_supervised_token_has_the_same_weight_and_the_others_none(case, tokens):
    """All tokens alike: gradients of equal length where supervised, zero elsewhere."""
    student, directions, targets, _ = case
    student = student.detach()[:1, :1].expand(3, 6, 5).clone().requires_grad_()
    targets = ReadyTargets(targets.probs()[:1, :1].expand(3, 6, 11))
    prototype_patch_loss(student, directions, targets, MASK, tokens, 0.1).total.backward()
    lengths = student.grad.norm(dim=-1)
    keep = {"masked": MASK, "visible": ~MASK, "all": torch.ones_like(MASK)}[tokens]
    assert lengths[~keep].sum() == 0
    torch.testing.assert_close(lengths[keep], lengths[keep][:1].expand(int(keep.sum())))
    assert lengths[keep][0] > 0


@pytest.mark.parametrize("tokens", ["masked", "visible", "all"])
def test_gradients_are_those_of_finite_differences(case, tokens):
    student, directions, targets, _ = case
    loss = lambda x, w: prototype_patch_loss(x, w, targets, MASK, tokens, 0.1, chunk=4).total  # noqa: E731
    assert torch.autograd.gradcheck(loss, (student, directions))


@pytest.mark.parametrize("tokens", ["visible", "all"])
def test_without_a_mask_every_token_is_visible_and_the_masked_part_is_nan(case, tokens):
    student, directions, targets, each = case
    result = prototype_patch_loss(student, directions, targets, torch.zeros_like(MASK), tokens, 0.1)
    assert result.total.item() == pytest.approx(each.mean(), rel=1e-12)
    assert result.visible.item() == pytest.approx(each.mean(), rel=1e-12)
    assert result.masked.isnan()


def test_nothing_to_supervise_is_refused(case, unit):
    student, directions, targets, _ = case
    nothing = torch.zeros_like(MASK)
    with pytest.raises(UserError, match=r"'masked', but the batch has no masked token. Set mask.ratio above 0"):
        prototype_patch_loss(student, directions, targets, nothing, "masked", 0.1)
    with pytest.raises(UserError, match="no visible token"):
        feature_patch_loss(student, unit(3, 6, 5), ~nothing, "visible")


@pytest.mark.parametrize("tokens", ["masked", "visible"])
def test_supervised_rows_are_those_of_the_mask(tokens):
    keep = MASK.flatten() if tokens == "masked" else ~MASK.flatten()
    for masked in (None, 6):
        rows = supervised(MASK, tokens, masked)
        assert rows.own.tolist() == keep.nonzero().flatten().tolist()  # in raster order
        assert rows.other.tolist() == (~keep).nonzero().flatten().tolist()
    assert supervised(MASK, "all") is None


class Waits(TorchDispatchMode):
    """Counts operations whose result decides a shape or a number in Python: on a GPU the program waits for them."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
        if by_mask and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.count += 1
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("tokens", ["masked", "visible", "all"])
def test_a_known_number_of_masked_tokens_gives_the_same_without_a_wait(case, unit, tokens):
    student, directions, targets, _ = case
    target = unit(3, 6, 5)
    seen = {}
    for masked in (None, 6):
        with Waits() as waits:
            losses = (
                prototype_patch_loss(student, directions, targets, MASK, tokens, 0.1, masked=masked),
                feature_patch_loss(student, target, MASK, tokens, masked),
            )
            grads = torch.autograd.grad(losses[0].total + losses[1].total, (student, directions))
        seen[masked] = [x for loss in losses for x in loss] + list(grads)
        assert (waits.count > 0) == (masked is None and tokens != "all")
    assert all(torch.equal(a, b) for a, b in zip(seen[None], seen[6], strict=True))


def test_an_unknown_word_is_refused():
    with pytest.raises(UserError, match=r"Unknown objective.patch.tokens 'mask'. Did you mean 'masked'"):
        supervised(MASK, "mask")


@pytest.mark.parametrize("tokens", ["masked", "visible", "all"])
def test_feature_regression_is_cosine_and_smooth_l1_under_the_same_mean(unit, golden, tokens):
    student, target = (3 * unit(3, 6, 5)).requires_grad_(), (3 * unit(3, 6, 5)).requires_grad_()
    each = np.array(
        [[golden.regression(student[b, n].tolist(), target[b, n].tolist()) for n in range(6)] for b in range(3)]
    )
    mask = MASK.numpy()
    masked, visible = each[mask].sum() / 6, each[~mask].sum() / 12
    result = feature_patch_loss(student, target, MASK, tokens)
    expected = {"masked": masked, "visible": visible, "all": each.sum() / 18}[tokens]
    assert [x.item() for x in result] == pytest.approx([expected, masked, visible], rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: feature_patch_loss(x, target, MASK, tokens).total, (student,))
    result.total.backward()
    assert target.grad is None


def test_feature_norm_standardises_each_channel_even_far_from_zero(unit):
    features = (unit(40, 3, 4) * torch.tensor([1, 10, 0.1, 2]) + torch.tensor([1000.0, -50, 0, 3])).float()
    norm = FeatureNorm(4)
    norm.accumulate(features[:10])
    norm.accumulate(features[10:])
    before = norm(features)  # the first step: what is pending serves
    norm.tick(0.9)
    after = norm(features)
    torch.testing.assert_close(before, after)
    torch.testing.assert_close(after.mean(dim=(0, 1)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.std(dim=(0, 1), correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_feature_norm_moves_by_its_momentum_at_ticks_alone():
    norm = FeatureNorm(1)
    norm.accumulate(torch.tensor([[1.0], [3.0]]))
    norm.tick(0.9)
    assert (norm.mean.item(), norm.var.item()) == (2, 1)  # the first tick takes the values as they are
    norm.accumulate(torch.tensor([[10.0], [14.0]]))
    seen = norm(torch.tensor([[2.0]])).item()
    assert seen == 0  # later steps use the running statistics, not the pending ones
    norm.tick(0.9)
    assert norm.mean.item() == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert norm.var.item() == pytest.approx(0.9 * 1 + 0.1 * 4)
    norm.tick(0.9)
    assert norm.mean.item() == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert set(norm.state_dict()) == {"mean", "var", "ticks"}


def test_feature_norm_before_anything_is_seen_changes_nothing():
    assert FeatureNorm(2)(torch.tensor([[3.0, -4.0]])).tolist() == [[pytest.approx(3.0), pytest.approx(-4.0)]]


def test_the_means_of_each_kind_are_not_rounded_under_autocast(unit):
    student, target = unit(4, 512, 16).float(), unit(4, 512, 16).float()
    mask = torch.rand(4, 512, generator=torch.Generator().manual_seed(0)) < 0.75
    plain = feature_patch_loss(student, target, mask, "all")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = feature_patch_loss(student, target, mask, "all")
    torch.testing.assert_close((mixed.masked, mixed.visible), (plain.masked, plain.visible), rtol=1e-6, atol=0)
