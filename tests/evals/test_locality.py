import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.evals import locality
from distill.evals.locality import Sums


def shares_pair_by_pair(tokens, labels, images):
    """Both shares from their definitions: analysis of variance, and every pair of patches looked at."""
    classes = np.unique(labels)
    means = {c: tokens[labels == c].mean(0) for c in classes}
    rest = tokens - np.stack([means[c] for c in labels])
    spread = (rest**2).sum() / (len(tokens) - len(classes))
    total = ((tokens - tokens.mean(0)) ** 2).sum() / (len(tokens) - 1)
    products = [
        rest[p] @ rest[q]
        for p in range(len(tokens))
        for q in range(len(tokens))
        if images[p] == images[q] and labels[p] != labels[q]
    ]
    return 1 - spread / total, np.mean(products) / spread


def added(tokens, labels, images, classes=6):
    sums = Sums(classes)
    for image in np.unique(images):
        sums.add(torch.tensor(tokens[images == image]), torch.tensor(labels[images == image]))
    return sums.shares()


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(4, 9))
@settings(max_examples=40, deadline=None)
def test_shares_are_those_of_looking_at_every_pair(seed, count, patches):
    rng = np.random.default_rng(seed)
    images = np.repeat(np.arange(count), patches)
    labels = rng.integers(0, 4, len(images))
    labels[:2] = 0, 1  # of one image at least
    tokens = rng.normal(size=(len(images), 3)) + rng.normal(size=(6, 3))[labels] + rng.normal(size=(count, 3))[images]
    tokens = np.concatenate([tokens, tokens + 0.1])  # more patches than classes
    labels, images = np.tile(labels, 2), np.tile(images, 2)
    np.testing.assert_allclose(added(tokens, labels, images), shares_pair_by_pair(tokens, labels, images), atol=1e-9)


@pytest.mark.parametrize(
    ("own", "of_class", "of_image", "class_share", "global_share"),
    [(1, 0, 0, 0, 0), (1, 1, 0, 0.5, 0), (1, 0, 1, 0, 0.5), (1, 1, 1, 1 / 3, 0.5), (1, 1, 3, 1 / 11, 0.9)],
)
def test_shares_find_the_variances_that_tokens_were_made_with(own, of_class, of_image, class_share, global_share):
    """Expected: of_class^2 / (all three squared and added), and of_image^2 / (own^2 + of_image^2)."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(400), 16)
    labels = rng.integers(0, 40, len(images))
    parts = [rng.normal(size=(n, 64)) for n in (len(images), 40, 400)]
    parts = [(part - part.mean(0)) / part.std(0) for part in parts]
    tokens = own * parts[0] + of_class * parts[1][labels] + of_image * parts[2][images]
    np.testing.assert_allclose(added(tokens, labels, images, 40), (class_share, global_share), atol=0.02)


def test_nothing_to_compare_is_nan():
    one_class = added(np.random.default_rng(0).normal(size=(8, 3)), np.zeros(8, int), np.repeat([0, 1], 4))
    assert one_class[0] == pytest.approx(0) and np.isnan(one_class[1])
    assert np.isnan(added(np.ones((3, 3)), np.arange(3), np.zeros(3))).all()


def scenes(arrays, paint, count=9, ignored=False):
    rng = np.random.default_rng(1)
    grids = [rng.integers(0, 5, (6, 6)) for _ in range(count)]
    masks = [np.kron(grid, np.ones((4, 4), int)) for grid in grids]
    if ignored:
        masks = [np.where(np.arange(24) < 12, 255, mask) for mask in masks]
    noise = [rng.integers(0, 3, (24, 24, 3)).astype(np.uint8) for _ in grids]
    return arrays([paint(grid, 4) + n for grid, n in zip(grids, noise)], masks, size=24)


@pytest.mark.parametrize("ignored", [False, True])
def test_task_reads_both_paths_and_the_pixels_of_labelled_patches(stub, arrays, paint, ignored):
    dataset = scenes(arrays, paint, ignored=ignored)
    model = stub(torch.eye(5), mixing=torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    result = locality.run(model, dataset)
    rows = {"final": [], "value": [], "raw": []}
    labels, images = [], []
    for i in range(len(dataset)):
        pixels = torch.tensor(np.array(dataset.image(i))).permute(2, 0, 1)[None].float() / 255
        paths = {"final": model.tokens(pixels, False)[1][0], "value": model.tokens(pixels, True)[1][0]}
        for y in range(6):
            for x in range(6):
                label = dataset.mask(i)[4 * y + 2, 4 * x + 2]
                if label == 255:
                    continue
                labels.append(label)
                images.append(i)
                for kind, tokens in paths.items():
                    rows[kind].append((tokens[y, x] / tokens[y, x].norm()).numpy())
                rows["raw"].append(pixels[0, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].numpy().ravel())
    assert result.counts == {"images": 9, "patches": len(labels)}
    for kind, tokens in rows.items():
        expected = shares_pair_by_pair(np.array(tokens, np.float64), np.array(labels), np.array(images))
        found = [result.metrics[f"{share}_{kind}"] for share in ("class_share", "global_share")]
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_single_path_is_the_same_as_beside_the_other(stub, arrays, paint):
    dataset = scenes(arrays, paint)
    model = stub(torch.eye(5), mixing=torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    both = locality.run(model, dataset).metrics
    for kind in ("final", "value"):
        one = locality.run(model, dataset, paths=kind).metrics
        assert set(one) == {f"{share}_{k}" for share in ("class_share", "global_share") for k in (kind, "raw")}
        np.testing.assert_equal(one, {name: both[name] for name in one})


def test_bad_input(stub, arrays, paint):
    model = stub(torch.eye(5))
    with pytest.raises(UserError, match="Did you mean 'value'"):
        locality.run(model, scenes(arrays, paint), paths="values")
    unlabelled = arrays([np.zeros((24, 24, 3), np.uint8)], [np.full((24, 24), 255)], size=24)
    with pytest.raises(UserError, match="none of its patches has a class"):
        locality.run(model, unlabelled)
