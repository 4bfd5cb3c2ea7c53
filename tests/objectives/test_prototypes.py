from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.objectives.prototypes import (
    Center,
    PrototypeTargets,
    ReadyTargets,
    mean_logits,
    sinkhorn,
    sinkhorn_center,
)


def test_mean_logits_are_the_mean_of_the_logits(unit):
    bottleneck, directions = unit(3, 7, 5), unit(11, 5)
    expected = (bottleneck @ directions.T).mean(dim=(0, 1))
    torch.testing.assert_close(mean_logits(bottleneck, directions), expected)
    assert not mean_logits(bottleneck.requires_grad_(), directions).requires_grad


def test_center_subtracts_then_sharpens(unit, golden):
    center = Center(11)
    center.center.copy_(unit(11))
    bottleneck, directions = unit(4, 5), unit(11, 5)
    probs = center.probs(bottleneck @ directions.T, 0.07)
    for row, x in zip(probs, bottleneck):
        expected = golden.centred(x.numpy(), directions.numpy(), center.center.tolist(), 0.07)
        assert row.tolist() == pytest.approx(expected, rel=1e-6)


def test_center_ticks_once_over_all_micro_batches_weighted_by_their_tokens():
    center = Center(2)
    center.center.copy_(torch.tensor([1.0, -1.0]))
    center.accumulate(torch.tensor([2.0, 4.0]), 3)
    center.accumulate(torch.tensor([6.0, 0.0]), 1)
    assert center.center.tolist() == [1.0, -1.0]  # nothing moves before the tick
    center.tick(0.9)
    mean = [(3 * 2 + 6) / 4, (3 * 4 + 0) / 4]
    moved = [0.9 * 1 + 0.1 * mean[0], 0.9 * -1 + 0.1 * mean[1]]
    assert center.center.tolist() == pytest.approx(moved)
    center.tick(0.9)  # nothing new
    assert center.center.tolist() == pytest.approx(moved)
    center.update(torch.tensor([0.0, 0.0]), 0.5)  # the earlier micro-batches are forgotten
    assert center.center.tolist() == pytest.approx([m / 2 for m in moved])


def test_center_alone_is_in_the_state_dict():
    center = Center(3)
    center.update(torch.ones(3), 0.0)
    assert list(center.state_dict()) == ["center"]
    other = Center(3)
    other.load_state_dict(center.state_dict())
    assert other.center.tolist() == [1, 1, 1]


def test_target_classes_agree_and_select_in_raster_order(targets):
    made = targets(3, 4)
    ready = ReadyTargets(made.probs())
    assert ready.probs.shape == (3, 4, 11)
    keep = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    for t in (made, ready):
        torch.testing.assert_close(t.chunk(slice(2, 9)), ready.probs.flatten(0, 1)[2:9])
        rows = keep.flatten().nonzero().flatten()
        torch.testing.assert_close(t.select(rows).chunk(slice(None)), ready.probs[keep])


def test_prototype_targets_are_the_centers(targets):
    made = targets(6)
    center = Center(11).double()
    center.center.copy_(made.center)
    expected = center.probs(made.bottleneck @ made.directions.T, made.temperature)
    torch.testing.assert_close(made.probs(), expected)


@pytest.mark.parametrize("iterations", [0, 1, 3, 10])
def test_sinkhorn_is_the_alternating_normalisation(unit, golden, iterations):
    logits = unit(4, 3, 6)
    expected = golden.sinkhorn(logits.flatten(0, 1).numpy(), 0.1, iterations)
    if iterations == 0:
        expected /= expected.sum(axis=1, keepdims=True)
    probs = sinkhorn(logits, 0.1, iterations)
    assert probs.shape == logits.shape
    np.testing.assert_allclose(probs.flatten(0, 1).numpy(), expected, rtol=1e-9)


def test_sinkhorn_balances_what_a_softmax_would_collapse(unit):
    logits = 0.1 * unit(60, 6)
    logits[:, 0] += 1  # everything prefers prototype 0
    assert torch.softmax(logits / 0.05, dim=-1).sum(dim=0)[0] > 59
    torch.testing.assert_close(
        sinkhorn(logits, 0.05, 50).sum(dim=0), torch.full((6,), 10.0).double(), rtol=0.02, atol=0
    )


@pytest.mark.parametrize("chunk", [5, 12, None])
@pytest.mark.parametrize(("iterations", "temperature"), [(0, 0.1), (1, 0.1), (3, 0.1), (3, 0.004)])
def test_sinkhorn_in_chunks_gives_the_same_targets(unit, chunk, iterations, temperature):
    bottleneck, directions = unit(4, 3, 5), unit(11, 5)
    center = sinkhorn_center(bottleneck, directions, temperature, iterations, chunk)
    made = PrototypeTargets(bottleneck, directions, center, temperature)
    expected = sinkhorn(bottleneck @ directions.T, temperature, iterations)
    torch.testing.assert_close(made.probs(), expected, rtol=1e-9, atol=1e-12)
    single = PrototypeTargets(bottleneck.float(), directions.float(), center.float(), temperature)
    center = sinkhorn_center(single.bottleneck, single.directions, temperature, iterations, chunk)
    torch.testing.assert_close(replace(single, center=center).probs().double(), expected, rtol=1e-3, atol=1e-6)


def test_sinkhorn_in_chunks_never_holds_all_logits(unit):
    bottleneck, directions = unit(64, 5), unit(11, 5)
    with Largest() as seen:
        sinkhorn_center(bottleneck, directions, 0.1, chunk=16)
    assert seen.size == 16 * 11


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The most numbers in one tensor that was made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, torch.Tensor)]
        if func not in (torch.ops.aten.split.Tensor, torch.ops.aten.view.default, torch.ops.aten.div.Tensor):
            self.size = max([self.size, *(t.numel() for t in made)])
        return out


def test_sinkhorn_survives_temperatures_that_underflow():
    logits = torch.tensor([[1.0, -1.0, -1.0], [0.9, -1.0, -1.0], [-0.5, -0.9, -1.0]])
    probs = sinkhorn(logits, 0.004)
    assert probs.isfinite().all()
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sinkhorn_is_not_rounded_under_autocast(unit, dtype):
    logits = unit(64, 1024).float()
    with torch.autocast("cpu", dtype):
        probs = sinkhorn(logits, 0.07)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(64))
    assert torch.equal(probs, sinkhorn(logits, 0.07))


def test_targets_are_in_full_precision_under_autocast(targets):
    made = targets(6)
    low = PrototypeTargets(made.bottleneck.bfloat16(), made.directions.float(), made.center.float(), made.temperature)
    with torch.autocast("cpu", torch.bfloat16):
        probs = low.probs()
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(6), rtol=1e-6, atol=0)
    assert (probs - made.probs()).abs().max() < 0.05
