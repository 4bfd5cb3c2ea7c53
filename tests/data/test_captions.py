import json
import warnings
from collections import Counter

import numpy as np
import pytest

from distill.config.schema import CaptionsConfig
from distill.data.captions import MISSES, CaptionPicker, parse_captions
from distill.data.order import CAPTION, keyed_rng
from distill.data.sample import Sample, SampleError
from distill.errors import UserError


def sample(**captions):
    return Sample("a/b", "x.tar", b"", captions)


def pick(cfg, record, count=600):
    picker = CaptionPicker(cfg)
    return [picker.pick(record, keyed_rng(CAPTION, 0, 0, position)) for position in range(count)]


def test_parse_takes_texts_and_leaves_the_rest():
    record = {"web": "a", "alt": ["b", "ü"], "width": 3, "tags": ["x", 1], "box": {"x": 1}, "none": None, "void": []}
    assert parse_captions(json.dumps(record).encode(), "s", "k") == {"web": ["a"], "alt": ["b", "ü"]}


@pytest.mark.parametrize(("data", "reason"), [(b'{"a":', "bad JSON"), (b"[1]", "not list"), (b"\xff\xfe", "bad JSON")])
def test_parse_refuses_what_is_no_object(data, reason):
    with pytest.raises(SampleError, match=reason):
        parse_captions(data, "s", "k")


def test_fields_then_texts_are_uniform():
    record = sample(web=["w"], synthetic=["s1", "s2", "s3"], detailed=["d"])
    found = pick(CaptionsConfig(), record, 3000)
    assert {first for first, _ in found} == {"w"}
    counts = Counter(second for _, second in found)
    assert abs(counts["d"] / 3000 - 1 / 2) < 0.04  # half the draws, though it has one text of four
    assert all(abs(counts[name] / 3000 - 1 / 6) < 0.03 for name in ("s1", "s2", "s3"))


def test_the_draw_depends_on_the_epoch():
    picker = CaptionPicker(CaptionsConfig(cls1=["a", "b"], cls2=[]))
    record = sample(a=["a"], b=["b"])
    epochs = [[picker.pick(record, keyed_rng(CAPTION, 0, epoch, 5))[0] for epoch in range(40)] for _ in range(2)]
    assert epochs[0] == epochs[1]
    assert set(epochs[0]) == {"a", "b"}


def test_one_cls_token():
    assert pick(CaptionsConfig(cls2=[]), sample(web=["w"]), 1) == [["w"]]


def test_a_field_that_only_the_fallback_serves_is_warned_of_once():
    picker = CaptionPicker(CaptionsConfig(cls1=["captoin"], cls2=["rare"], fallback="alt"))
    samples = [sample(alt=["a"], **({"rare": ["b"]} if i == 7 else {})) for i in range(200)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for one in samples[: MISSES - 1]:
            picker.pick(one, np.random.default_rng(0))
        assert not told
        for one in samples[MISSES - 1 :]:
            picker.pick(one, np.random.default_rng(0))
    assert [str(one.message) for one in told] == [
        f"None of the first {MISSES} samples had the caption field 'captoin': captions.fallback=alt stood for it "
        "(fields found: alt)."
    ]


def test_fallback_for_a_missing_field():
    cfg = CaptionsConfig(fallback="web")
    assert pick(cfg, sample(web=["w"]), 3) == [["w", "w"]] * 3
    picker = CaptionPicker(CaptionsConfig(cls1=["alt"], fallback="title"))
    reason = r"x.tar: a/b: no caption field 'alt' nor fallback 'title' \(fields found: web\)"
    with pytest.raises(SampleError, match=reason):
        picker.pick(sample(web=["w"]), np.random.default_rng(0))


def misses(picker, record, rng, count):
    for _ in range(count):
        with pytest.raises(SampleError, match="no caption field 'synthetic'"):
            picker.pick(record, rng)


def test_a_field_that_some_samples_lack_only_costs_those():
    picker, rng = CaptionPicker(CaptionsConfig(cls2=["synthetic"])), np.random.default_rng(0)
    lacking = sample(web=["w"])
    misses(picker, lacking, rng, MISSES - 1)  # the first samples drawn may be the ones that lack it
    assert picker.pick(sample(web=["w"], synthetic=["s"]), rng) == ["w", "s"]
    misses(picker, lacking, rng, 3 * MISSES)


def test_a_field_that_no_sample_has_is_fatal_and_named_with_what_there_is():
    picker, rng = CaptionPicker(CaptionsConfig(cls2=["synthetic"])), np.random.default_rng(0)
    lacking = sample(web=["w"], detailed=["d"])
    misses(picker, lacking, rng, MISSES - 1)
    with pytest.raises(UserError, match=r"x.tar: a/b: no caption field 'synthetic'. Fields found: detailed, web. Set"):
        picker.pick(lacking, rng)


def test_the_chance_of_a_text_is_that_of_the_draws():
    picker = CaptionPicker(CaptionsConfig())
    for record, chance in (
        (sample(), 0),
        (sample(web=["w"], synthetic=["s"], detailed=["d"]), 1),
        (sample(web=["w"], synthetic=["s"]), 1 / 2),
        (sample(web=["w", " "], synthetic=["", "s", "s", "s"], detailed=["d"]), 7 / 16),
    ):
        assert picker.chance(record.captions) == chance
        drawn = 0
        for position in range(2000 if 0 < chance < 1 else 10):
            try:
                drawn += len(picker.pick(record, keyed_rng(CAPTION, 0, 0, position))) == 2
            except SampleError:
                continue
        assert drawn / (position + 1) == pytest.approx(chance, abs=0.04)
    assert CaptionPicker(CaptionsConfig(fallback="web")).chance({"web": ["w"]}) == 1


def test_a_record_without_captions_is_skipped_not_fatal():
    with pytest.raises(SampleError, match=r"x.tar: a/b: no captions"):
        pick(CaptionsConfig(), sample())


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_caption(text):
    with pytest.raises(SampleError, match=r"x.tar: a/b: empty caption \(field 'web'\)"):
        pick(CaptionsConfig(), sample(web=[text], synthetic=["s"], detailed=["d"]))


def test_cls1_must_not_be_empty():
    with pytest.raises(UserError, match=r"captions\.cls1 is empty"):
        CaptionPicker(CaptionsConfig(cls1=[]))


def test_draws_do_not_depend_on_the_record():
    rngs = [np.random.default_rng(0), np.random.default_rng(0)]
    picker = CaptionPicker(CaptionsConfig())
    picker.pick(sample(web=["w"], synthetic=["s"] * 5, detailed=["d"]), rngs[0])
    picker.pick(sample(web=["w"] * 3, synthetic=["s"], detailed=["d"]), rngs[1])
    assert rngs[0].random() == rngs[1].random()
