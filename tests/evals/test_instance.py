from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.evals import instance
from distill.evals.instance import NOT_THERE, nearest
from distill.evals.per_image import resampled
from distill.evals.run import check_evaluation


@given(st.integers(0, 1000), st.integers(2, 20), st.booleans())
@settings(max_examples=30, deadline=None)
def test_nearest_equals_loops(seed, count, among):
    index = F.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)
    queries = index if among else F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    itself = torch.arange(count) if among else torch.full((5,), NOT_THERE)
    for at, (score, found) in enumerate(zip(*map(torch.Tensor.tolist, nearest(queries, index, itself)))):
        others = [i for i in range(count) if not (among and i == at)]
        assert found == max(others, key=lambda i, q=queries[at]: (q @ index[i]).item())
        assert score == pytest.approx((queries[at] @ index[found]).item(), abs=1e-6)


def test_blocks_of_queries_join(monkeypatch):
    x = F.normalize(torch.randn(23, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    itself = torch.arange(23)
    itself[3] = NOT_THERE
    whole = nearest(x, x, itself)
    assert whole[1][3] == 3
    monkeypatch.setattr(instance, "ROWS", 5)
    assert all(torch.equal(one, other) for one, other in zip(nearest(x, x, itself), whole))


def shown(arrays, paint, levels, labels, domains=None, train=None, also=None):
    """Images of one flat red level each: the stub answers with the row of `table` for the level."""
    images = [paint(np.full((4, 4), level), 4) for level in levels]
    return arrays(images, labels=labels, domains=domains, train=train, also=also)


TOY = F.normalize(torch.eye(6) + torch.eye(6)[3:4] * torch.eye(6)[:, 4:5], dim=-1)  # level 4 is like level 3


def test_mean_over_domains_and_neighbours_of_the_own_domain_only(stub, arrays, paint):
    """Cars: two of three found. The toy's neighbour among toys is right; an image of the cars is nearer."""
    train = shown(arrays, paint, [0, 1, 2, 4, 3], [0, 1, 2, 3, 4], ["cars", "cars", "cars", "toys", "cars"])
    dataset = shown(arrays, paint, [0, 1, 2, 3], [0, 1, 0, 3], ["cars", "cars", "cars", "toys"], train=train)
    merged = instance.run(stub(TOY), dataset)
    assert merged.protocol["scope"] == "merged" and merged.details["domains"]["toys"]["recall1_cls1"] == 0
    assert merged.metrics["recall1_cls1"] == pytest.approx(2 / 3 / 2)
    assert merged.metrics["recall1_chance"] == pytest.approx(1 / 5)
    result = instance.run(stub(TOY), dataset, scope="separate")
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
    assert result.details["domains"]["toys"]["recall1_cls1"] == pytest.approx(2 / 3)  # the last has no match
    assert result.counts == {"images": 4, "index_images": 5, "domains": 2, "images_without_match": 1}


def test_queries_without_a_match_are_misses_and_counted(stub, arrays, paint):
    train = shown(arrays, paint, [0, 1], [0, 1])
    dataset = shown(arrays, paint, [0, 1, 2], [0, 1, 2], train=train)
    result = instance.run(stub(torch.eye(5)), dataset)
    assert result.metrics["recall1_cls1"] == pytest.approx(2 / 3)
    assert result.metrics["recall1_chance"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert result.counts == {"images": 3, "index_images": 2, "domains": 1, "images_without_match": 1}
    assert result.per_image["recall1_cls1"]["values"] == [[0, 1.0], [0, 1.0], [0, 0.0]]


@pytest.mark.parametrize("scope", ["merged", "separate"])
def test_an_image_alone_in_its_domain_is_not_its_own_neighbour(stub, arrays, paint, scope):
    dataset = shown(arrays, paint, [0, 0, 1], [0, 0, 1], ["cars", "cars", "toys"])
    result = instance.run(stub(torch.eye(5)), dataset, scope=scope)
    assert {name: of["recall1_cls1"] for name, of in result.details["domains"].items()} == {"cars": 1, "toys": 0}
    assert result.details["domains"]["toys"]["recall1_chance"] == 0
    assert result.counts == {"images": 3, "index_images": 3, "domains": 2, "images_without_match": 1}


@pytest.mark.parametrize("scope", ["merged", "separate"])
def test_both_scopes_equal_a_search_image_by_image(stub, arrays, scope):
    """Five domains: one with an index, one with images in the index only, three that are their own."""
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(3, 4))  # features are colours, so that no two are as near

    def some(count, domains):
        colours = rng.integers(0, 256, (count, 3)).astype(np.uint8)
        also = [tuple(rng.integers(0, 3, rng.integers(0, 2)).tolist()) for _ in range(count)]
        return colours, rng.integers(0, 3, count).tolist(), rng.choice(domains, count).tolist(), also

    def dataset(colours, labels, domains, also, **more):
        images = [np.broadcast_to(colour, (4, 4, 3)) for colour in colours]
        return arrays(images, labels=labels, domains=domains, also=also, **more)

    def entries(colours, labels, domains, also):
        features = (colours / 255 - 0.1) @ mixing
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return [(f, {label, *more}, domain) for f, label, domain, more in zip(features, labels, domains, also)]

    queries, index = some(90, ["cars", "toys", "food", "met"]), some(30, ["met", "shops"])
    model = stub(torch.eye(4), mixing=torch.from_numpy(mixing).float())
    result = instance.run(model, dataset(*queries, train=dataset(*index)), scope=scope)

    asked = entries(*queries)
    whole = [entry for entry in asked if entry[2] != "met"] + entries(*index)
    hits, chances = {}, {}
    for query in asked:
        feature, labels, domain = query
        there = [entry for entry in whole if entry is not query and (scope == "merged" or entry[2] == domain)]
        right = [bool(entry[1] & labels) and entry[2] == domain for entry in there]
        hits.setdefault(domain, []).append(right[np.argmax([entry[0] @ feature for entry in there])])
        chances.setdefault(domain, []).append(np.mean(right))
    expected = np.mean([np.mean(of_domain) for of_domain in hits.values()])
    assert result.metrics["recall1_cls1"] == pytest.approx(expected) and 0.05 < expected < 0.9
    assert result.metrics["recall1_chance"] == pytest.approx(np.mean([np.mean(c) for c in chances.values()]))
    searched = len([entry for entry in whole if scope == "merged" or entry[2] != "shops"])
    assert (result.counts["images"], result.counts["index_images"], result.counts["domains"]) == (90, searched, 4)
    lone = sum(chance == 0 for of_domain in chances.values() for chance in of_domain)
    assert result.counts.get("images_without_match", 0) == lone


def test_any_of_several_labels_is_right(stub, arrays, paint):
    """The query's neighbour has its second label; so has the index image that is the other's nearest."""
    train = shown(arrays, paint, [0, 1, 2], [3, 1, 2], also=[(), (4,), ()])
    dataset = shown(arrays, paint, [0, 1, 2], [0, 4, 1], also=[(3,), (), (0,)], train=train)
    result = instance.run(stub(torch.eye(5)), dataset)
    assert result.metrics["recall1_cls1"] == pytest.approx(2 / 3)
    assert result.metrics["recall1_chance"] == pytest.approx(1 / 3) and "images_without_match" not in result.counts
    among = shown(arrays, paint, [0, 0, 1, 1], [0, 1, 2, 3], also=[(1,), (), (), ()])
    assert instance.run(stub(torch.eye(5)), among).counts == {
        "images": 4,
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
    with pytest.raises(UserError, match="Did you mean 'merged'"):
        check_evaluation({"instance": {"scope": "mergd"}}, dataset)
    with pytest.raises(UserError, match="Did you mean 'square'"):
        check_evaluation({"instance": {"fit": "squre"}}, dataset)
    with pytest.raises(UserError, match="'instance' needs labels"):
        check_evaluation(["instance"], arrays([paint(np.zeros((4, 4), int), 4)]))
    with pytest.raises(UserError, match="no image has its label in the index"):
        instance.run(stub(torch.eye(5)), dataset)
