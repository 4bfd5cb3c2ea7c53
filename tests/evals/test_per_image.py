import numpy as np
import pytest
import torch

from distill.evals.compare import compare_results
from distill.evals.metrics import mean_iou
from distill.evals.per_image import (
    draws,
    group_samples,
    interval,
    iou_samples,
    mean_samples,
    overlaps,
    ratio_samples,
    resampled,
)

ONCE = np.ones((1, 4))


def matrices(seed=0, images=4, classes=5):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, 4, (images, classes, classes), generator=generator)
    found[:, 3] = found[:, :, 3] = 0  # a class that is nowhere
    return found


def test_values_come_in_the_datasets_order():
    assert mean_samples({3: 0.25, 0: 1.0}) == {"kind": "mean", "values": [1.0, 0.25]}
    assert ratio_samples({1: (1, 2), 0: (0, 3)})["values"] == [[0, 3], [1, 2]]


def test_resampling_means_ratios_and_ious():
    weights = np.array([[1, 1, 1, 1], [0, 2, 0, 2], [4, 0, 0, 0]], float)
    mean = {"kind": "mean", "values": [0, 1, 1, 0.5]}
    assert resampled(mean, weights).tolist() == [0.625, 0.75, 0]
    ratio = {"kind": "ratio", "values": [[0, 1], [2, 4], [1, 1], [3, 4]]}
    assert resampled(ratio, weights) == pytest.approx([6 / 10, 10 / 16, 0])
    of_image = matrices()
    samples = iou_samples({at: overlaps(matrix) for at, matrix in enumerate(of_image)})
    for row, found in zip(weights, resampled(samples, weights)):
        whole = (torch.tensor(row)[:, None, None] * of_image).sum(0)
        assert found == pytest.approx(mean_iou(whole))


def test_images_without_a_scored_pixel_do_no_harm():
    samples = iou_samples({0: overlaps(torch.zeros(3, 3, dtype=torch.int64)), 1: overlaps(torch.eye(3).long())})
    assert resampled(samples, np.ones((1, 2)))[0] == 1


def test_draws_are_those_of_a_bootstrap_and_repeatable():
    drawn = draws(50)
    assert drawn.shape == (1000, 50) and (drawn.sum(1) == 50).all()
    assert np.array_equal(drawn, draws(50)) and not np.array_equal(drawn, draws(50, seed=1))
    assert drawn.mean() == 1 and 0.9 < drawn.var() < 1.05  # binomial: 1 - 1 / 50


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(size=400)
    found = interval(resampled({"kind": "mean", "values": values.tolist()}, draws(400)))
    error = 1.96 * values.std() / 20
    assert found == pytest.approx((values.mean() - error, values.mean() + error), abs=0.02)


def result(values, **changes):
    own = {"kind": "mean", "values": values}
    base = {"task": "knn", "dataset": "d", "protocol": {"k": [3]}, "metrics": {"top1_cls1": float(np.mean(values))}}
    return {**base, "counts": {"images": len(values)}, "per_image": {"top1_cls1": own}, **changes}


def test_pairs_are_compared_as_pairs():
    """B is better by one image in ten everywhere: the interval of the difference is narrower than either's own."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, 200).astype(float)
    second = np.where(rng.random(200) < 0.1, 1.0, first)
    (line,) = compare_results("knn", result(first.tolist()), result(second.tolist()))
    assert line.dataset == "d"
    low, high = line.difference_interval
    assert low <= line.second - line.first <= high
    assert high - low < 0.6 * (line.first_interval[1] - line.first_interval[0])


def test_what_is_not_paired_has_intervals_of_its_own():
    one, two = result([0.0, 1.0] * 20), result([1.0] * 30)
    (line,) = compare_results("knn", one, two)
    assert line.dataset == "d, 40 and 30 images"
    assert line.difference_interval is None and line.second_interval == (1, 1) and line.first_interval[0] < 0.5
    (line,) = compare_results("knn", one, {**two, "per_image": {}})
    assert line.second_interval is None


def test_other_protocols_are_not_compared():
    with pytest.raises(ValueError, match=r"knn: the first has protocol k = \[3\], the second \[5\], so the two cannot"):
        compare_results("knn", result([1.0]), result([1.0], protocol={"k": [5]}))


def test_groups_count_alike_and_one_that_was_not_drawn_is_left_out():
    samples = group_samples({4: (1, 1.0), 0: (0, 0.0), 2: (0, 1.0), 3: (0, 1.0)})
    assert samples == {"kind": "groups", "values": [[0, 0.0], [0, 1.0], [0, 1.0], [1, 1.0]]}
    weights = np.array([[1.0, 1, 1, 1], [2, 1, 0, 1], [2, 1, 1, 0]])
    assert resampled(samples, weights) == pytest.approx([(2 / 3 + 1) / 2, (1 / 3 + 1) / 2, 0.5])
