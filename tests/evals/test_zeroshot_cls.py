from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.evals import zeroshot_cls
from distill.evals.datasets import open_dataset
from distill.evals.run import check_evaluation
from distill.evals.zeroshot_cls import ZeroShotClassification, recalls


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_recalls_equal_sorting(seed, images, classes):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(images, classes, generator=generator)
    targets = torch.randint(0, classes, (images,), generator=generator)
    order = scores.argsort(1, descending=True)
    for rank, value in recalls(scores, targets).items():
        hits = [int(target) in row[:rank].tolist() for row, target in zip(order, targets)]
        assert value == pytest.approx(np.mean(hits))


def test_a_model_that_answers_all_alike_gets_chance():
    found = recalls(torch.ones(8, 10), torch.arange(8))
    assert found[1] == pytest.approx(0.1) and found[5] == pytest.approx(0.5)


def labelled(arrays, paint, levels, labels, **more):
    return arrays([paint(np.full((4, 4), level), 4) for level in levels], labels=labels, **more)


def test_nearest_text_wins_and_each_cls_is_scored(stub, arrays, paint):
    """CLS-1 is the class's row, CLS-2 the same with every other sign turned, `both` the mean of the unit vectors."""
    table = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    levels, labels = [0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 3, 4, 1, None]
    result = zeroshot_cls.run(stub(table), labelled(arrays, paint, levels, labels))
    assert result.metrics["top1_cls1"] == pytest.approx(5 / 6)
    texts = F.normalize(table, dim=-1)
    one = F.normalize(table[levels[:6]], dim=-1)
    two = one * torch.tensor([1.0, -1.0] * 3)
    for name, feature in (("cls2", two), ("both", F.normalize(one + two, dim=-1))):
        hits = (feature @ texts.T).argmax(1) == torch.tensor(labels[:6])
        assert result.metrics[f"top1_{name}"] == pytest.approx(hits.float().mean().item())
    assert result.metrics["top5_cls1"] == 1 and result.metrics["top1_chance"] == 0.2
    assert result.metrics["top1_constant"] == pytest.approx(2 / 6)
    assert result.counts["images"] == 6 and result.counts["images_without_label"] == 1
    assert result.counts["classes"] == result.counts["classes_present"] == 5


def test_prompts_are_averaged_as_unit_vectors(arrays, paint, stub):
    """Each prompt has its own feature: the class vector is the mean of their unit vectors."""

    class Wordy(stub):
        def encode_text(self, texts):
            base = super().encode_text(texts)
            return base + torch.tensor([[3.0 * ("photo" in text), 0, 0, 0, 0.5 * len(text)] for text in texts])

    model = Wordy(torch.eye(5))
    dataset = labelled(arrays, paint, [0], [0])
    task_texts = {}

    class Spy(ZeroShotClassification):
        def outcome(self):
            task_texts["found"] = self.texts
            return super().outcome()

    from distill.evals.engine import run_task
    from distill.evals.prompts import templates

    run_task(Spy, model, dataset, prompts="tcl")
    for at, name in enumerate(dataset.class_names):
        rows = F.normalize(model.encode_text([t.replace("{}", name) for t in templates("tcl")]), dim=-1)
        torch.testing.assert_close(task_texts["found"][at], F.normalize(rows.mean(0), dim=0))


@pytest.mark.parametrize(
    ("own", "given", "used"),
    [("tcl", None, "clip80"), ("plain", None, "plain"), ("plain", "clip7", "clip7"), ("tcl", "tcl", "tcl")],
)
def test_prompt_sets(arrays, paint, own, given, used):
    dataset = labelled(arrays, paint, [0], [0], prompts=own)
    options = ZeroShotClassification.options_from({} if given is None else {"prompts": given}, dataset)
    assert options.prompts == used


def test_only_things_are_candidates_on_the_scenes(tiny_model):
    dataset = open_dataset("scenes:32", samples=16)
    result = zeroshot_cls.run(tiny_model, dataset)
    assert result.counts["classes"] == 13 and result.counts["prompts"] == 1
    assert result.metrics["top1_chance"] == pytest.approx(1 / 13)


def test_bad_input(stub, arrays, paint):
    dataset = labelled(arrays, paint, [0], [None])
    with pytest.raises(UserError, match="no image has a label"):
        zeroshot_cls.run(stub(torch.eye(5)), dataset)
    with pytest.raises(UserError, match="Unknown prompt set 'clip8'"):
        check_evaluation({"zeroshot_cls": {"prompts": "clip8"}}, dataset)
    with pytest.raises(UserError, match="Did you mean 'square'"):
        check_evaluation({"zeroshot_cls": {"fit": "squre"}}, dataset)
    model = stub(torch.eye(5))
    model.encode_text = None
    with pytest.raises(UserError, match="'zeroshot_cls' compares images with texts"):
        zeroshot_cls.run(model, dataset)
