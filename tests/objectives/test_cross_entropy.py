"""The fused, chunked cross-entropy against the plain one and against float64 loops."""

import pytest
import torch

from distill.objectives.cross_entropy import prototype_cross_entropy, prototype_cross_entropy_plain
from distill.objectives.prototypes import PrototypeTargets, ReadyTargets


@pytest.fixture
def case(unit, targets):
    """Student `[13, 5]` and directions `[11, 5]`, both with gradient, and their targets."""
    return unit(13, 5).requires_grad_(), unit(11, 5).requires_grad_(), targets(13)


def test_values_are_the_definitions(case, golden):
    student, directions, targets = case
    result = prototype_cross_entropy(student, directions, targets, 0.1, chunk=4)
    x, w = student.detach().numpy(), directions.detach().numpy()
    y, v, c = targets.bottleneck.numpy(), targets.directions.numpy(), targets.center.numpy()
    expected = [golden.cross_entropy(x[i], w, golden.centred(y[i], v, c, 0.07), 0.1) for i in range(13)]
    assert result.tokens.tolist() == pytest.approx(expected, rel=1e-12)
    assert result.total.item() == pytest.approx(sum(expected), rel=1e-12)
    plain = prototype_cross_entropy_plain(student, directions, targets, 0.1)
    assert plain.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 13, 100, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("ready", [False, True])
def test_values_and_gradients_are_those_of_the_plain_one(case, chunk, dtype, tolerance, ready):
    student, directions, targets = case
    student, directions = (x.detach().to(dtype).requires_grad_() for x in (student, directions))
    parts = (targets.bottleneck, targets.directions, targets.center)
    targets = PrototypeTargets(*(x.to(dtype) for x in parts), targets.temperature)
    if ready:
        targets = ReadyTargets(targets.probs())
    result = prototype_cross_entropy(student, directions, targets, 0.1, chunk)
    plain = prototype_cross_entropy_plain(student, directions, targets, 0.1)
    torch.testing.assert_close(result.tokens, plain.detach(), rtol=tolerance, atol=tolerance)
    assert result.tokens.dtype == result.total.dtype == dtype
    ours = torch.autograd.grad(0.3 * result.total, (student, directions))
    theirs = torch.autograd.grad(0.3 * plain.sum(), (student, directions))
    for a, b in zip(ours, theirs):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=10 * tolerance)


def test_gradients_are_those_of_finite_differences(case):
    student, directions, targets = case
    loss = lambda x, w: prototype_cross_entropy(x, w, targets, 0.1, chunk=5).total  # noqa: E731
    assert torch.autograd.gradcheck(loss, (student, directions))


def test_nothing_flows_to_the_teacher_or_through_the_single_tokens(case, unit):
    student, directions, _ = case
    teacher, prototypes = unit(13, 5).requires_grad_(), unit(11, 5).requires_grad_()
    targets = PrototypeTargets(teacher, prototypes, torch.zeros(11, dtype=torch.float64), 0.1)
    for loss in (
        prototype_cross_entropy(student, directions, targets, 0.1).total,
        prototype_cross_entropy_plain(student, directions, targets, 0.1).sum(),
    ):
        loss.backward()
    assert teacher.grad is None
    assert prototypes.grad is None
    assert not prototype_cross_entropy(student, directions, targets, 0.1).tokens.requires_grad


def test_without_gradients_the_values_are_the_same(case):
    student, directions, targets = case
    with_gradient = prototype_cross_entropy(student, directions, targets, 0.1)
    with torch.no_grad():
        without = prototype_cross_entropy(student, directions, targets, 0.1)
    assert torch.equal(with_gradient.tokens, without.tokens)
    assert not without.total.requires_grad
    assert with_gradient.total.requires_grad


def test_without_gradients_half_of_the_products_is_skipped(case):
    student, directions, targets = case

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
            return func(*args, **(kwargs or {}))

    with Products() as training:
        prototype_cross_entropy(student, directions, targets, 0.1, chunk=13)
    with torch.no_grad(), Products() as looking:
        prototype_cross_entropy(student, directions, targets, 0.1, chunk=13)
    assert (training.count, looking.count) == (4, 2)


def test_no_tokens_give_zero_and_a_zero_gradient(case, targets):
    _, directions, _ = case
    total, tokens = prototype_cross_entropy(torch.empty(0, 5, dtype=torch.float64), directions, targets(0), 0.1)
    total.backward()
    assert total.item() == 0
    assert tokens.shape == (0,)
    assert directions.grad.abs().max() == 0


def test_sharp_distributions_stay_finite(unit):
    """At temperature 0.001 the losing prototypes underflow; the loss is then the logit's distance to the best one."""
    directions = torch.eye(4, dtype=torch.float32)
    student, target = directions[:1], ReadyTargets(directions[1:2])
    assert prototype_cross_entropy(student, directions, target, 0.001).tokens.item() == pytest.approx(1000)


def test_no_tensor_of_tokens_by_prototypes_is_kept_for_backward(unit):
    """Neither saved by autograd nor made in one piece: the largest tensor is a chunk."""
    tokens, prototypes = 300, 200
    student, directions = unit(tokens, 5).requires_grad_(), unit(prototypes, 5).requires_grad_()
    targets = PrototypeTargets(unit(tokens, 5), unit(prototypes, 5), torch.zeros(prototypes).double(), 0.1)

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes = [t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor)]
            Largest.size = max([Largest.size, *sizes])
            return out

    with Largest():
        prototype_cross_entropy(student, directions, targets, 0.1, chunk=16).total.backward()
    assert Largest.size == 16 * prototypes
    with Largest():
        prototype_cross_entropy_plain(student, directions, targets, 0.1).sum().backward()
    assert Largest.size == tokens * prototypes


def test_autocast_keeps_logits_exact_and_multiplies_gradients_in_low_precision(case):
    student, directions, targets = case
    student, directions = student.detach().float().requires_grad_(), directions.detach().float().requires_grad_()
    parts = (targets.bottleneck.float(), targets.directions.float(), targets.center.float())
    targets = PrototypeTargets(*parts, targets.temperature)
    exact = prototype_cross_entropy(student, directions, targets, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        low = prototype_cross_entropy(student, directions, targets, 0.1)
    assert low.tokens.dtype == torch.float32
    assert torch.equal(low.tokens, exact.tokens)  # on a CPU, whose low-precision products would be rounded
    gradients = [torch.autograd.grad(r.total, (student, directions)) for r in (low, exact)]
    for a, b in zip(*gradients):
        assert a.dtype == torch.float32
        assert not torch.equal(a, b)
        assert (a - b).norm() < 0.03 * b.norm()


def test_targets_may_be_of_another_precision_than_the_student(case):
    student, directions, targets = case
    parts = (targets.bottleneck.float(), targets.directions.float(), targets.center.float())
    rounded = PrototypeTargets(*parts, targets.temperature)
    mixed = prototype_cross_entropy(student, directions, rounded, 0.1, chunk=4)
    assert mixed.tokens.dtype == torch.float64
    torch.testing.assert_close(
        mixed.tokens, prototype_cross_entropy(student, directions, targets, 0.1).tokens, rtol=1e-5, atol=1e-5
    )
