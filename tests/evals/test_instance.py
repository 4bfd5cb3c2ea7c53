from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.evals import instance
from distill.evals.instance import nearest
from distill.evals.per_image import resampled
from distill.evals.run import check_evaluation


@given(st.integers(0, 1000), st.integers(2, 20), st.booleans())
@settings(max_examples=30, deadline=None)
def test_nearest_equals_loops(seed, count, itself):
    index = F.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)
    queries = index if itself else F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    for at, found in enumerate(nearest(queries, index, itself).tolist()):
        others = [i for i in range(count) if not (itself and i == at)]
        assert found == max(others, key=lambda i, q=queries[at]: (q @ index[i]).item())


def test_blocks_of_queries_join(monkeypatch):
    x = F.normalize(torch.randn(23, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    whole = nearest(x, x, True)
    monkeypatch.setattr(instance, "ROWS", 5)
    assert torch.equal(nearest(x, x, True), whole)


def shown(arrays, paint, levels, labels, domains=None, train=None, also=None):
    """Images of one flat red level each: the stub answers with the row of `table` for the level."""
    images = [paint(np.full((4, 4), level), 4) for level in levels]
    return arrays(images, labels=labels, domains=domains, train=train, also=also)


def test_mean_over_domains_and_neighbours_of_the_own_domain_only(stub, arrays, paint):
    """Levels 0 to 4 have orthogonal features. Cars: two of three found. Toys: a car's level would be nearer."""
    train = shown(arrays, paint, [0, 1, 2, 3, 3], [0, 1, 2, 3, 4], ["cars", "cars", "cars", "toys", "cars"])
    dataset = shown(arrays, paint, [0, 1, 2, 3], [0, 1, 0, 3], ["cars", "cars", "cars", "toys"], train=train)
    result = instance.run(stub(torch.eye(5)), dataset)
    assert result.details["domains"]["cars"]["recall1_cls1"] == pytest.approx(2 / 3)
    assert result.details["domains"]["toys"]["recall1_cls1"] == 1
    for feature in ("cls1", "cls2", "patches"):
        assert result.metrics[f"recall1_{feature}"] == pytest.approx((2 / 3 + 1) / 2)
    assert result.metrics["recall1_chance"] == pytest.approx((1 / 4 + 1) / 2)
    assert result.counts == {"images": 4, "index_images": 5, "domains": 2}
    assert set(result.per_image) == {"recall1_cls1", "recall1_cls2", "recall1_patches"}
    for name, samples in result.per_image.items():
        assert samples["values"] == [[0, 1.0], [0, 1.0], [0, 0.0], [1, 1.0]]
        assert resampled(samples, np.ones((1, 4))) == pytest.approx(result.metrics[name])
    assert result.protocol["index"] == "train"


def test_among_the_rest_an_image_is_not_its_own_neighbour(stub, arrays, paint):
    dataset = shown(arrays, paint, [0, 0, 1, 2, 4], [0, 0, 1, 1, None])
    table = F.normalize(torch.tensor([[1.0, 0, 0], [0.1, 1, 0], [0, 0.9, 1], [0, 0, 1], [0, 0, 1]]), dim=-1)
    result = instance.run(stub(table), dataset)
    assert result.protocol["index"] == "rest"
    assert result.metrics["recall1_cls1"] == 1
    assert result.metrics["recall1_chance"] == pytest.approx(1 / 3)  # one of the three others, for each of the four
    assert result.counts == {"images": 4, "index_images": 4, "domains": 1}


def test_a_domain_that_the_index_lacks_is_searched_among_the_rest(stub, arrays, paint):
    train = shown(arrays, paint, [0, 1], [0, 1], ["cars", "cars"])
    levels, labels, domains = [0, 3, 3, 4], [1, 2, 2, 3], ["cars", "toys", "toys", "toys"]
    result = instance.run(stub(torch.eye(5)), shown(arrays, paint, levels, labels, domains, train=train))
    assert result.details["domains"]["cars"]["recall1_cls1"] == 0
    assert result.details["domains"]["toys"]["recall1_cls1"] == 1
    assert result.counts == {"images": 3, "index_images": 2, "domains": 2, "images_without_match": 1}


def test_queries_without_a_match_are_left_out_and_counted(stub, arrays, paint):
    train = shown(arrays, paint, [0, 1], [0, 1])
    dataset = shown(arrays, paint, [0, 1, 2], [0, 1, 2], train=train)
    result = instance.run(stub(torch.eye(5)), dataset)
    assert result.metrics["recall1_cls1"] == 1
    assert result.counts == {"images": 2, "index_images": 2, "domains": 1, "images_without_match": 1}
    alone = instance.run(stub(torch.eye(5)), shown(arrays, paint, [0, 0, 1], [0, 0, 1], train=train), index="rest")
    assert alone.counts["images_without_match"] == 1 and alone.counts["images"] == 2


def test_any_of_several_labels_is_right(stub, arrays, paint):
    """The query's neighbour has its second label; so has the index image that is the other's nearest."""
    train = shown(arrays, paint, [0, 1, 2], [3, 1, 2], also=[(), (4,), ()])
    dataset = shown(arrays, paint, [0, 1, 2], [0, 4, 1], also=[(3,), (), (0,)], train=train)
    result = instance.run(stub(torch.eye(5)), dataset)
    assert result.metrics["recall1_cls1"] == pytest.approx(2 / 3)
    assert result.metrics["recall1_chance"] == pytest.approx(1 / 3) and result.counts["images"] == 3
    among = shown(arrays, paint, [0, 0, 1, 1], [0, 1, 2, 3], also=[(1,), (), (), ()])
    assert instance.run(stub(torch.eye(5)), among).counts == {
        "images": 2,
        "index_images": 4,
        "domains": 1,
        "images_without_match": 2,
    }


def test_bad_input(stub, arrays, paint):
    dataset = shown(arrays, paint, [0, 1], [0, 1])
    with pytest.raises(UserError, match="needs a train split"):
        check_evaluation({"instance": {"index": "train"}}, dataset)
    with pytest.raises(UserError, match="Did you mean 'rest'"):
        check_evaluation({"instance": {"index": "rset"}}, dataset)
    with pytest.raises(UserError, match="Did you mean 'square'"):
        check_evaluation({"instance": {"fit": "squre"}}, dataset)
    with pytest.raises(UserError, match="'instance' needs labels"):
        check_evaluation(["instance"], arrays([paint(np.zeros((4, 4), int), 4)]))
    with pytest.raises(UserError, match="no image has its label in the index"):
        instance.run(stub(torch.eye(5)), dataset)
