import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalHitRate

from distill.errors import UserError
from distill.evals import retrieval
from distill.evals.retrieval import RANKS, cls_features, hit_probability, image_hits, text_hits


def unit(count, width=6, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def image_to_text(images, texts, owner):
    return {k: float(hits.mean()) for k, hits in image_hits(images, texts, owner).items()}


def text_to_image(images, texts, owner):
    return {k: float(hits.mean()) for k, hits in text_hits(images, texts, owner).items()}


def naive(images, texts, owner):
    """Both recalls by sorting, one query at a time (no two scores are equal)."""
    scores = (images @ texts.T).numpy()
    i2t, t2i = {}, {}
    for k in RANKS:
        hits = [any(owner[t] == i for t in np.argsort(-row)[:k]) for i, row in enumerate(scores)]
        i2t[k] = float(np.mean(hits))
        t2i[k] = float(np.mean([owner[t] in np.argsort(-scores[:, t])[:k] for t in range(len(owner))]))
    return i2t, t2i


@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_equals_sorting_with_several_captions_an_image(seed, counts):
    owner = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)])
    images, texts = unit(len(counts), seed=seed), unit(len(owner), seed=seed + 1)
    i2t, t2i = naive(images, texts, owner)
    assert image_to_text(images, texts, owner) == pytest.approx(i2t)
    assert text_to_image(images, texts, owner) == pytest.approx(t2i)


def test_blocks_of_queries_join(monkeypatch):
    owner = torch.arange(30).repeat_interleave(2)
    images, texts = unit(30), unit(60, seed=1)
    whole = image_to_text(images, texts, owner), text_to_image(images, texts, owner)
    monkeypatch.setattr(retrieval, "ROWS", 7)
    assert image_to_text(images, texts, owner) == pytest.approx(whole[0])
    assert text_to_image(images, texts, owner) == pytest.approx(whole[1])


def test_agrees_with_torchmetrics():
    owner = torch.arange(25).repeat_interleave(3)
    images, texts = unit(25, seed=4), unit(75, seed=5)
    scores = images @ texts.T
    query = torch.arange(25)[:, None].expand_as(scores)
    for k in RANKS:
        expected = RetrievalHitRate(top_k=k)(scores.flatten(), (owner == query).flatten(), indexes=query.flatten())
        assert image_to_text(images, texts, owner)[k] == pytest.approx(expected.item())


@pytest.mark.parametrize(("above", "own", "others", "k"), itertools.product((0, 1, 3), (1, 2), (0, 2, 3), (1, 2, 4)))
def test_ties_count_as_all_orders_of_them_do_on_average(above, own, others, k):
    orders = set(itertools.permutations([1] * own + [0] * others))
    expected = np.mean([any(([0] * above + list(order))[:k]) for order in orders])
    found = hit_probability(*(torch.tensor([v]) for v in (above, own, others)), k)
    assert found.item() == pytest.approx(expected)


def test_scores_that_equal_nothing_are_no_hits():
    images, texts = torch.full((3, 4), torch.nan), unit(3, 4)
    for hits in (image_hits(images, texts, torch.arange(3)), text_hits(images, texts, torch.arange(3))):
        assert all(value.eq(0).all() for value in hits.values())
    assert hit_probability(torch.tensor([0]), torch.tensor([1]), torch.tensor([-1]), 1).item() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["images", "texts"])
def test_features_that_are_not_finite_are_refused(stub, arrays, paint, names, bad, side):
    images = [paint(np.full((4, 4), at % 5), 4) for at in range(6)]
    model, broken = stub(torch.eye(5)), torch.eye(5)
    broken[2, 3] = bad
    method = "encode_image" if side == "images" else "encode_text"
    setattr(model, method, getattr(stub(broken), method))
    with pytest.raises(UserError, match=rf"features of {side} are not all finite.*earlier checkpoint"):
        retrieval.run(model, arrays(images, captions=[{"web": [f"a {name}"]} for name in [*names, "cat"]]))


def test_a_collapsed_model_gets_chance(stub, arrays, paint):
    images = [paint(np.full((4, 4), i % 5), 4) for i in range(12)]
    captions = [{"web": ["a cat", f"dog {i}"]} for i in range(12)]
    result = retrieval.run(stub(torch.ones(5, 4)), arrays(images, captions=captions))
    for k in RANKS:
        assert result.metrics[f"i2t_r{k}_cls1"] == pytest.approx(result.metrics[f"chance_i2t_r{k}"])
        assert result.metrics[f"t2i_r{k}_cls1"] == pytest.approx(result.metrics[f"chance_t2i_r{k}"])
    assert result.metrics["chance_t2i_r5"] == pytest.approx(5 / 12)
    assert result.metrics["chance_i2t_r1"] == pytest.approx(2 / 24)
    assert result.counts == {"images": 12, "captions": 24, "distinct_captions": 13}


@pytest.mark.parametrize("width", [7, 192])
def test_repeated_captions_and_images_tie_exactly(width):
    """29 images share one caption: each is found with probability 1/29 ahead of its doubles."""
    one = unit(1, width)
    texts = torch.cat([one.repeat(29, 1), -one])
    images = torch.cat([one.repeat(29, 1), -one])
    owner = torch.arange(30)
    assert image_to_text(images, texts, owner)[1] == pytest.approx((29 * (1 / 29) + 1) / 30)
    assert text_to_image(images, texts, owner)[5] == pytest.approx((29 * (5 / 29) + 1) / 30)


def test_a_model_that_knows_gets_everything(stub, arrays, paint, names):
    images = [paint(np.full((4, 4), i), 4) for i in range(5)]
    captions = [{"web": [f"a {name}", f"the {name}"], "alt": ["road"]} for name in names]
    captions.append({"alt": ["sky"]})
    images.append(images[0])
    result = retrieval.run(stub(torch.eye(5)), arrays(images, captions=captions), field="web")
    assert result.metrics["i2t_r1_cls1"] == 1
    assert result.metrics["t2i_r1_cls1"] == 1
    assert result.counts["images"] == 5 and result.counts["images_without_caption"] == 1
    assert result.protocol["field"] == "web" and result.protocol["fit"] == "square"
    # Every other entry of CLS-2 has the wrong sign: the images of dog and sky end up behind all others.
    assert result.metrics["i2t_r1_cls2"] == pytest.approx(3 / 5)


def test_both_is_the_mean_of_unit_vectors():
    cls = torch.tensor([[[2.0, 0.0], [0.0, 5.0]]])
    found = cls_features(cls)
    torch.testing.assert_close(found["both"], torch.tensor([[0.5**0.5, 0.5**0.5]]))
    torch.testing.assert_close(found["cls1"], torch.tensor([[1.0, 0.0]]))
    assert list(cls_features(cls[:, :1])) == ["cls1"]


def test_field_must_be_clear(stub, arrays, paint):
    images = [paint(np.zeros((4, 4), int), 4)]
    both = arrays(images, captions=[{"alt": ["a cat"], "web": ["a dog"]}])
    with pytest.raises(UserError, match=r"caption fields alt, web\. Choose one"):
        retrieval.run(stub(torch.eye(5)), both)
    with pytest.raises(UserError, match="Did you mean 'web'"):
        retrieval.run(stub(torch.eye(5)), both, field="wed")
    one = arrays(images, captions=[{"alt": ["a cat"]}])
    assert retrieval.run(stub(torch.eye(5)), one).protocol["field"] == "alt"
    with pytest.raises(UserError, match="'retrieval' needs captions, but arrays has only images"):
        retrieval.run(stub(torch.eye(5)), arrays(images))
