"""What two results must share to be compared."""

import re

import pytest

from distill.errors import UserError
from distill.evals.compare import compare_results


def result(task="knn", metric="top1_cls1", counts=None, **protocol):
    return {
        "task": task,
        "dataset": "d",
        "metrics": {metric: 0.5},
        "protocol": {"k": [3], **protocol},
        "counts": {"images": 4, **(counts or {})},
        "per_image": {},
    }


def refused(one, two, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compare_results("knn", one, two)


def test_a_key_that_only_one_has_is_a_difference_too():
    refused(result(window=None), result(), "the first has protocol window = None, the second has none, so the two")
    refused(result(), result(window=None), "the first has no protocol window, the second None, so the two")


@pytest.mark.parametrize(
    ("task", "metric", "resource"),
    [
        ("linear_seg", "miou", "memory"),
        ("depth", "rmse", "memory"),
        ("normals", "rmse", "memory"),
        ("zeroshot_seg", "miou_value", "chunk"),
    ],
)
def test_what_a_task_may_use_up_keeps_nobody_from_comparing(task, metric, resource):
    """Files of earlier versions have it among the protocol, and differ in it."""
    (line,) = compare_results(task, result(task, metric, **{resource: 4}), result(task, metric, **{resource: 8}))
    assert line.metric == metric
    assert compare_results(task, result(task, metric, **{resource: 4}), result(task, metric))
