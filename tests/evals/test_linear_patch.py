import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.evals import linear_patch
from distill.evals.linear_patch import centre_class, majority_class
from distill.evals.per_image import resampled
from distill.evals.probes import Logistic, Ridge


def sample(count=200, width=5, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    features = rng.normal(size=(count, width)) * [1, 5, 0.1, 2, 1] + rng.normal(size=(classes, width))[labels] + 7
    return torch.tensor(features), torch.tensor(labels)


def test_equals_the_textbook_solution():
    """Least squares on standardised columns with sqrt(penalty) rows added: numpy's lstsq, no normal equations."""
    x, y = sample()
    ridge = Ridge(4, ridge=0.05)
    for start in range(0, 200, 37):  # sums over unequal batches
        ridge.add(x[start : start + 37].float(), y[start : start + 37])
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    target = np.eye(4)[y] - np.eye(4)[y].mean(0)
    design = np.vstack([z, np.sqrt(0.05 * 200) * np.eye(5)])
    weight = np.linalg.lstsq(design, np.vstack([target, np.zeros((5, 4))]), rcond=None)[0]
    scores = z @ weight + np.eye(4)[y].mean(0)
    ridge.solve()
    found = x @ ridge.weight + ridge.bias
    np.testing.assert_allclose(found.numpy(), scores, atol=1e-6)
    assert torch.equal(ridge.predict(x), torch.tensor(scores.argmax(1)))


def test_a_constant_feature_changes_nothing():
    x, y = sample()
    with_constant = torch.cat([x, torch.full((200, 1), 3.0)], 1)
    plain, padded = Ridge(4, 0.01), Ridge(4, 0.01)
    plain.add(x, y)
    padded.add(with_constant, y)
    assert torch.equal(plain.predict(x), padded.predict(with_constant))


def naive_patches(mask, grid, ignore):
    """Centre and majority class of each cell, by counting pixels."""
    centre, majority = np.zeros(grid, int), np.zeros(grid, int)
    for i in range(grid[0]):
        for j in range(grid[1]):
            rows = slice(i * mask.shape[0] // grid[0], -(-(i + 1) * mask.shape[0] // grid[0]))
            columns = slice(j * mask.shape[1] // grid[1], -(-(j + 1) * mask.shape[1] // grid[1]))
            values, counts = np.unique(mask[rows, columns], return_counts=True)
            best = values[counts == counts.max()]
            majority[i, j] = best[best != ignore].min() if (best != ignore).any() else ignore
            centre[i, j] = mask[
                (2 * i + 1) * mask.shape[0] // (2 * grid[0]), (2 * j + 1) * mask.shape[1] // (2 * grid[1])
            ]
    return centre, majority


@given(st.integers(0, 1000), st.integers(3, 20), st.integers(3, 20), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_classes_of_patches_equal_counting(seed, height, width, rows, columns):
    mask = np.random.default_rng(seed).choice([0, 1, 2, 255], (height, width))
    centre, majority = naive_patches(mask, (rows, columns), 255)
    assert np.array_equal(centre_class(torch.tensor(mask), (rows, columns)), centre)
    assert np.array_equal(majority_class(torch.tensor(mask), (rows, columns), 255), majority)


def scene(rng, paint, cell=4, side=6):
    grid = rng.integers(0, 5, (side, side))
    return paint(grid, cell), np.kron(grid, np.ones((cell, cell), int))


def split(arrays, paint, seed, count=12, train=None, mask=lambda m: m):
    rng = np.random.default_rng(seed)
    images, masks = zip(*(scene(rng, paint) for _ in range(count)))
    return arrays(list(images), [mask(m) for m in masks], train=train, size=24)


def test_logistic_probe_is_at_the_minimum_of_its_loss():
    """At the solution the gradient, written out by hand, vanishes: X^T (p - y) / n + 2 penalty w = 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)) * np.array([1, 10, 0.1, 1, 1, 0]) + np.array([0, 5, 0, -3, 0, 7])
    y = (x[:, :4] @ rng.normal(size=(4, 3)) + rng.normal(size=(300, 3))).argmax(1)
    probe = Logistic(3, penalty=0.01)
    for start in range(0, 300, 50):
        probe.add(torch.tensor(x[start : start + 50]), torch.tensor(y[start : start + 50]))
    probe.solve()
    std = x.std(0)
    z = np.where(std > 1e-6, (x - x.mean(0)) / np.maximum(std, 1e-6), 0)
    w = probe.weight.double().numpy() * np.where(std > 1e-6, std, 0)[:, None]
    logits = x @ probe.weight.double().numpy() + probe.bias.double().numpy()
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = z.T @ (p - np.eye(3)[y]) / 300 + 2 * 0.01 * w
    assert np.abs(gradient).max() < 1e-4
    assert np.abs((p - np.eye(3)[y]).mean(0)).max() < 1e-4
    assert torch.equal(probe.predict(torch.tensor(x)), torch.tensor(logits.argmax(1)))


def test_logistic_probe_keeps_an_even_share_of_many_patches(monkeypatch):
    monkeypatch.setattr("distill.evals.probes.LIMIT", 40)
    probe = Logistic(2, 1e-3)
    for start in range(0, 130, 7):
        rows = torch.arange(start, min(start + 7, 130), dtype=torch.float32)
        probe.add(rows[:, None], (rows.long() % 2))
    assert torch.cat(probe.features).flatten().tolist() == list(range(0, 130, 4))
    assert probe.counts.tolist() == [65, 65]


@pytest.mark.parametrize("target", ["centre", "majority"])
def test_reads_linear_features(stub, arrays, paint, target):
    """The stub's tokens name the class."""
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    result = linear_patch.run(stub(torch.eye(5)), dataset, target=target)
    assert result.metrics["accuracy"] == result.metrics["mean_class_accuracy"] == result.metrics["accuracy_ridge"] == 1
    assert result.metrics["accuracy_constant"] < 0.3
    assert result.counts["patches"] == result.counts["train_patches"] == 12 * 36
    assert result.counts["classes"] == result.counts["classes_present"] == 5
    assert result.details["recall"]["road"] == 1


def test_each_image_keeps_what_a_bootstrap_needs(stub, arrays, paint):
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    model = stub(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    result = linear_patch.run(model, dataset, penalty=1.0, ridge=10.0)
    assert set(result.per_image) == {"accuracy", "mean_class_accuracy", "accuracy_ridge", "baseline_raw"}
    assert 0 < result.metrics["accuracy"] < 1
    for name, samples in result.per_image.items():
        assert len(samples["values"]) == 12
        assert resampled(samples, np.ones((1, 12))) == pytest.approx(result.metrics[name])


def test_baseline_is_the_same_probe_on_pixels(stub, arrays, paint):
    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0))
    result = linear_patch.run(stub(torch.eye(5)), dataset)

    def pixels(data):
        cells = [
            (np.array(data.image(i))[y : y + 4, x : x + 4], data.mask(i)[y + 2, x + 2])
            for i in range(len(data))
            for y in range(0, 24, 4)
            for x in range(0, 24, 4)
        ]
        return torch.tensor(np.array([c.ravel() / 255 for c, _ in cells])), torch.tensor([c for _, c in cells])

    probe = Logistic(5, 1e-4)
    probe.add(*pixels(dataset.train()))
    features, labels = pixels(dataset)
    expected = (probe.predict(features) == labels).double().mean().item()
    assert result.metrics["baseline_raw"] == pytest.approx(expected)


def test_ignored_patches_are_neither_fitted_nor_scored(stub, arrays, paint):
    def wrong_on_the_left(mask):
        return np.where(np.arange(24) < 12, 255, mask)

    dataset = split(arrays, paint, 1, train=split(arrays, paint, 0, mask=wrong_on_the_left), mask=wrong_on_the_left)
    result = linear_patch.run(stub(torch.eye(5)), dataset)
    assert result.counts["patches"] == result.counts["train_patches"] == 12 * 18
    assert result.metrics["accuracy"] == 1


def test_bad_input(stub, arrays, paint):
    model = stub(torch.eye(5))
    with pytest.raises(UserError, match="'linear_patch' needs a train split"):
        linear_patch.run(model, split(arrays, paint, 0))
    good = split(arrays, paint, 0)
    empty = split(arrays, paint, 0, mask=lambda m: np.full_like(m, 255))
    with pytest.raises(UserError, match="none of its patches has a class to fit on"):
        linear_patch.run(model, split(arrays, paint, 1, train=empty))
    with pytest.raises(UserError, match="none of its patches has a class to score"):
        linear_patch.run(model, split(arrays, paint, 1, train=good, mask=lambda m: np.full_like(m, 255)))
    with pytest.raises(UserError, match=r"linear_patch\.penalty = -1"):
        linear_patch.run(stub(torch.eye(5)), split(arrays, paint, 1, train=good), penalty=-1)
    with pytest.raises(UserError, match=r"linear_patch\.ridge = 0"):
        linear_patch.run(model, split(arrays, paint, 1, train=good), ridge=0)
    with pytest.raises(UserError, match="Did you mean 'centre'"):
        linear_patch.run(model, split(arrays, paint, 1, train=good), target="center")
