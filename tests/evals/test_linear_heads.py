"""Linear layers trained side by side, and the standardisation in front of them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from distill.evals.linear_heads import LinearHeads, Standardise, optimise


def test_standardises_as_numpy_does_whatever_the_batches():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 4)) * [1, 20, 0.01, 0] + [0, 500, -3, 2]
    norm = Standardise()
    for start, stop in ((0, 7), (7, 60), (60, 90)):
        norm.add(torch.tensor(x[start:stop], dtype=torch.float32).reshape(1, -1, 4))
    found = norm(torch.tensor(x, dtype=torch.float32)).numpy()
    std = x.std(0)
    std[3] = 1
    expected = (x - x.mean(0)) / std
    np.testing.assert_allclose(found[:, :3], expected[:, :3], atol=2e-3)
    assert (found[:, 3] == 0).all()


def problem():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 6, generator=generator)
    return x, (x @ torch.randn(6, 3, generator=generator)).argmax(1)


def trained(rates, steps=12):
    x, y = problem()
    heads = LinearHeads(6, 3, rates)

    def loss():
        logits = heads(x)  # [64, R, 3]
        return sum(F.cross_entropy(logits[:, at], y) for at in range(len(rates)))

    optimise(heads.groups(), rates, loss, steps=steps)
    return heads


def test_heads_side_by_side_are_those_trained_alone():
    rates = [1e-3, 1e-1, 1.0]
    together = trained(rates)
    for at, rate in enumerate(rates):
        alone = trained([rate])
        torch.testing.assert_close(together.weights[at], alone.weights[0])
        torch.testing.assert_close(together.biases[at], alone.biases[0])
    assert together(torch.rand(2, 5, 6)).shape == (2, 5, 3, 3)
    assert not torch.allclose(together.weights[0], together.weights[1])


def test_the_rate_rises_for_a_twentieth_and_falls_to_zero():
    """AdamW written out, with the rates by hand: 40 steps, two of them rising."""
    x, y = problem()
    weight = LinearHeads(6, 3, [0.1]).weights[0].detach().clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    bias = torch.zeros(3)
    bias_first, bias_second = torch.zeros(3), torch.zeros(3)
    for step in range(40):
        rate = 0.1 * min((step + 1) / 2, (40 - step) / 38)
        slope = (x @ weight + bias).softmax(1) - F.one_hot(y, 3)
        for value, gradient, one, two in (
            (weight, x.T @ slope / 64, first, second),
            (bias, slope.mean(0), bias_first, bias_second),
        ):
            value *= 1 - rate * 1e-4
            one.mul_(0.9).add_(0.1 * gradient)
            two.mul_(0.999).add_(0.001 * gradient.square())
            hat, root = one / (1 - 0.9 ** (step + 1)), (two / (1 - 0.999 ** (step + 1))).sqrt()
            value -= rate * hat / (root + 1e-8)
    found = trained([0.1], steps=40)
    torch.testing.assert_close(found.weights[0], weight, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.biases[0], bias, atol=1e-4, rtol=1e-3)


def test_trains_where_gradients_are_off():
    with torch.no_grad():
        heads = trained([0.1], steps=2)
        assert not torch.is_grad_enabled()
    assert heads.weights[0].abs().max() > 0.05
