import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from distill.evals.metrics import accuracy, chance_miou, class_iou, confusion, mean_class_accuracy, mean_iou

labels = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 255]), st.integers(0, 3)), min_size=1, max_size=40)


@given(labels)
@settings(max_examples=60, deadline=None)
def test_counts_and_iou_equal_loops_over_pixels(pairs):
    truth, predicted = (torch.tensor(column) for column in zip(*pairs))
    matrix = confusion(truth, predicted, 4, ignore=255)
    kept = [(t, p) for t, p in pairs if t != 255]
    for c in range(4):
        assert [matrix[c, d].item() for d in range(4)] == [kept.count((c, d)) for d in range(4)]
        mine = {i for i, (t, _) in enumerate(kept) if t == c}
        found = {i for i, (_, p) in enumerate(kept) if p == c}
        iou = class_iou(matrix)[c].item()
        assert math.isnan(iou) if not mine | found else iou == len(mine & found) / len(mine | found)


def test_agree_with_torchmetrics():
    generator = torch.Generator().manual_seed(3)
    truth = torch.randint(0, 6, (5000,), generator=generator)
    predicted = torch.where(torch.rand(5000, generator=generator) < 0.6, truth, torch.randint(0, 6, (5000,)))
    truth[:100] = 255
    matrix = confusion(truth, predicted, 6, ignore=255)
    options = {"num_classes": 6, "ignore_index": 255}
    assert mean_iou(matrix) == pytest.approx(multiclass_jaccard_index(predicted, truth, **options).item(), abs=1e-6)
    micro = multiclass_accuracy(predicted, truth, average="micro", **options).item()
    assert accuracy(matrix) == pytest.approx(micro, abs=1e-6)
    macro = multiclass_accuracy(predicted, truth, average="macro", **options).item()
    assert mean_class_accuracy(matrix) == pytest.approx(macro, abs=1e-6)


def test_mean_iou_leaves_out_empty_unions_only():
    truth, predicted = (
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([0, 0, 1, 2]),
    )  # 2 is predicted but not there; 3 is neither
    assert mean_iou(confusion(truth, predicted, 4, 255)) == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_mean_class_accuracy_leaves_out_classes_the_truth_lacks():
    matrix = confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), 3, 255)
    assert mean_class_accuracy(matrix) == pytest.approx((1 / 2 + 1) / 2)


def test_empty_matrix_has_no_score():
    empty = torch.zeros(3, 3, dtype=torch.int64)
    assert math.isnan(mean_iou(empty)) and math.isnan(accuracy(empty)) and math.isnan(mean_class_accuracy(empty))


def test_chance_is_what_random_labels_get():
    generator = torch.Generator().manual_seed(0)
    truth = torch.cat([torch.full((n,), c) for c, n in enumerate((200_000, 60_000, 20_000, 0))])
    guess = torch.randint(0, 4, truth.shape, generator=generator)
    matrix = confusion(truth, guess, 4, 255)
    assert chance_miou(matrix) == pytest.approx(mean_iou(matrix), abs=2e-3)
