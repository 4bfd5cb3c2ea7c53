import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import distill
from distill.config.schema import EVAL_TASKS
from distill.errors import UserError
from distill.evals import registry
from distill.evals.datasets import open_dataset
from distill.evals.datasets.base import MASKS
from distill.evals.features import Needs
from distill.evals.registry import TASKS
from distill.evals.run import check_evaluation, evaluate
from distill.evals.task import Outcome, Task, TaskOptions

ALL: dict[str, dict] = {
    "zeroshot_seg": {},
    "zeroshot_cls": {},
    "retrieval": {},
    "knn": {},
    "linear_patch": {},
    "locality": {},
    "linear_cls": {"steps": 4},
    "linear_seg": {"steps": 4},
    "depth": {"steps": 4},
    "normals": {"steps": 2, "channels": 4},
    "instance": {},
}

NO_SHARES = ("rmse", "mean_angle", "abs_rel", "global_share")  # of these metrics the last is a correlation


@pytest.fixture
def everything(arrays, paint, names):
    def make(count, seed, train=None):
        rng = np.random.default_rng(seed)
        grids = [rng.integers(0, 5, (4, 4)) for _ in range(count)]
        return arrays(
            [paint(g, 4) for g in grids],
            [np.kron(g, np.ones((4, 4), int)) for g in grids],
            [{"web": [f"a {names[np.bincount(g.ravel()).argmax()]}"]} for g in grids],
            [int(np.bincount(g.ravel()).argmax()) for g in grids],
            train=train,
            depth=[1.0 + np.kron(g, np.ones((4, 4))) for g in grids],
            normals=[np.tile([0.0, 0.6, 0.8], (16, 16, 1)) for _ in grids],
        )

    return make(9, 1, train=make(7, 0))


def test_all_tasks_share_one_pass_a_split(stub, everything):
    model = stub(torch.eye(5))
    results = evaluate(model, ALL, everything)
    assert list(results) == list(ALL) == list(TASKS)
    # Nine test images are encoded once for the final tokens and once for this stub's value path.
    assert model.seen == [(7, 3, 16, 16), (9, 3, 16, 16), (9, 3, 16, 16)]
    assert model.deep == [(7, 0, 1, 2, 3), (9, 0, 1, 2, 3)]
    for name, result in results.items():
        assert result.task == name and result.dataset == "arrays"
        assert result.counts["images"] == 9
        # Of three test images the label has no match in the train split.
        assert result.counts.get("images_without_match") == (3 if name == "instance" else None)
        assert result.metrics and result.seconds > 0
        assert all(isinstance(value, float) for value in result.metrics.values())
        shares = {k: v for k, v in result.metrics.items() if not k.startswith(NO_SHARES)}
        assert shares and all(0 <= value <= 1 for value in shares.values())
        shown = set(TASKS[name].headline) & set(result.metrics)
        assert any("chance" in metric or "constant" in metric or "raw" in metric for metric in shown), name
        assert result.protocol["size"] == 16


def test_live_evaluation_may_run_every_task():
    assert tuple(TASKS) == EVAL_TASKS


def test_together_equals_alone_and_again(stub, everything):
    together = evaluate(stub(torch.eye(5)), ALL, everything)
    for name in ALL:
        alone = evaluate(stub(torch.eye(5)), {name: ALL[name]}, everything)[name]
        again = evaluate(stub(torch.eye(5)), {name: ALL[name]}, everything, batch=2)[name]
        assert alone.metrics == together[name].metrics
        assert again.metrics == pytest.approx(alone.metrics)


def test_model_and_random_states_are_left_as_found(everything, stub):
    class Model(stub):
        def encode_image(self, images, values=False):
            assert not self.dropout.training
            assert not torch.is_grad_enabled()
            torch.rand(3), np.random.rand(3), random.random()
            return super().encode_image(images, values)

    model = Model(torch.eye(5))
    model.dropout, model.frozen = nn.Dropout(), nn.BatchNorm1d(3)
    model.train()
    model.frozen.eval()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    evaluate(model, ["zeroshot_seg"], everything)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert model.training and model.dropout.training and not model.frozen.training


def test_states_come_back_after_an_error(everything, stub):
    class Broken(stub):
        def encode_image(self, images, values=False):
            raise RuntimeError("no")

    model = Broken(torch.eye(5)).train()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        evaluate(model, ["retrieval"], everything)
    assert model.training and torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()


def test_every_task_that_fails_is_named(everything, stub, monkeypatch):
    def failing(text, kind=UserError):
        def outcome(self):
            raise kind(text)

        return outcome

    monkeypatch.setattr(TASKS["knn"], "outcome", failing("One."))
    monkeypatch.setattr(TASKS["retrieval"], "outcome", failing("Two."))
    with pytest.raises(UserError, match=r"^One\. Two\.$"):
        evaluate(stub(torch.eye(5)), ["knn", "retrieval", "locality"], everything)
    monkeypatch.setattr(TASKS["retrieval"], "outcome", failing("fault", RuntimeError))
    with pytest.raises(RuntimeError, match="fault"):
        evaluate(stub(torch.eye(5)), ["knn", "retrieval"], everything)


def test_autocast_around_evaluation_changes_nothing(everything, stub):
    class Model(stub):
        def encode_text(self, texts):
            features = super().encode_text(texts) @ torch.eye(8)
            assert features.dtype == torch.float32
            return features

    table = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    plain = evaluate(Model(table), ALL, everything)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = evaluate(Model(table), ALL, everything)
    assert {k: v.metrics for k, v in plain.items()} == {k: v.metrics for k, v in cast.items()}


def test_inference_mode_around_evaluation_changes_nothing(everything, stub):
    model = stub(torch.eye(5))
    tasks = {name: ALL[name] for name in ("linear_patch", "linear_seg", "depth")}
    plain = evaluate(model, tasks, everything)
    with torch.inference_mode():
        inside = evaluate(model, tasks, everything)
    assert {k: v.metrics for k, v in plain.items()} == {k: v.metrics for k, v in inside.items()}


def test_a_real_model_on_the_scenes(tiny_model):
    results = evaluate(tiny_model.train(), ALL, "scenes:32", 12)
    assert tiny_model.training
    assert results["knn"].counts["train_images"] <= 12
    assert results["zeroshot_seg"].counts["pixels"] == 12 * 32 * 32
    assert results["zeroshot_seg"].protocol["prompts"] == "plain"
    assert results["retrieval"].protocol["field"] == "synthetic"
    again = evaluate(tiny_model, ALL, "scenes:32", 12)
    assert {k: v.metrics for k, v in again.items()} == {k: v.metrics for k, v in results.items()}


def test_evaluate_by_keywords_groups_equal_datasets(stub, everything):
    model = stub(torch.eye(5))
    results = distill.evaluate(model, knn={"dataset": everything, "k": 3}, linear_patch=everything)
    assert list(results) == ["knn", "linear_patch"]
    assert results["knn"].protocol["k"] == [3]
    assert len(model.seen) == 2
    with pytest.raises(UserError, match="Did you mean 'knn'"):
        distill.evaluate(model, kn=everything)
    with pytest.raises(UserError, match="'knn' has no dataset"):
        distill.evaluate(model, knn={"k": 3})


def test_errors_come_before_any_work(stub, everything, arrays):
    model = stub(torch.eye(5))
    with pytest.raises(UserError, match=r"Unknown task 'zeroshot_sge'\. Did you mean 'zeroshot_seg'"):
        evaluate(model, ["zeroshot_sge"], everything)
    with pytest.raises(UserError, match=r"Unknown option of knn 'kk'"):
        evaluate(model, {"zeroshot_seg": {}, "knn": {"kk": 3}}, everything)
    with pytest.raises(UserError, match="already"):
        evaluate(model, ALL, everything, 5)
    for limit in ("samples", "size"):
        with pytest.raises(UserError, match="samples and size belong to open_dataset"):
            distill.evaluate(model, retrieval="scenes:32", knn=everything, **{limit: 32})
    with pytest.raises(UserError, match="it must be whole numbers from 1"):
        distill.evaluate(model, retrieval="scenes:32", knn={"dataset": everything, "k": 0})
    assert model.seen == [] and model.texts == []


def test_a_model_without_text_tower(stub, everything):
    model = stub(torch.eye(5))
    model.encode_text = None
    with pytest.raises(UserError, match=r"'retrieval' compares images with texts, but the model has no text tower"):
        evaluate(model, ["retrieval"], everything)
    assert evaluate(model, ["knn"], everything)["knn"].metrics["top1_patches"] > 0


def test_check_evaluation_needs_no_model(arrays, paint):
    check_evaluation(ALL, "scenes")
    check_evaluation({"knn": {"k": 5}}, "scenes")
    with pytest.raises(UserError, match="Unknown kind of dataset 'scene'"):
        check_evaluation(ALL, "scene")
    with pytest.raises(UserError, match="needs labels"):
        check_evaluation(["knn"], arrays([paint(np.zeros((4, 4), int), 4)]))


def test_a_new_task_is_a_class_and_a_registry_line(stub, everything, monkeypatch):
    @dataclass
    class Shares(TaskOptions):
        of: int = 0

    class Share(Task):
        name = "share"
        requires = (MASKS,)
        headline: ClassVar = ("share",)
        Options = Shares
        hits = total = 0

        @property
        def needs(self):
            return Needs(encode=False, masks=True)

        def read(self, batch):
            for example in batch.examples:
                self.hits += int((example.mask == self.options.of).sum())
                self.total += example.mask.size

        def outcome(self):
            return Outcome({"share": self.hits / self.total}, self.protocol(), {"images": 9}, {})

    monkeypatch.setitem(registry.TASKS, "share", Share)
    results = evaluate(stub(torch.eye(5)), {"share": {"of": 2}, "knn": {}}, everything)
    expected = np.mean([everything.mask(i) == 2 for i in range(9)])
    assert results["share"].metrics["share"] == pytest.approx(expected)
    assert results["share"].protocol["of"] == 2


def test_an_open_dataset_is_reused_without_drawing_again():
    assert open_dataset("scenes:32", samples=4).item(1).image() is not None
    from distill.evals.datasets.scenes import scene_source

    assert scene_source(32, 4, "test") is scene_source(32, 4, "test")
    assert 1 in scene_source(32, 4, "test")._cache


@pytest.mark.parametrize(("task", "given"), [("linear_seg", {"memory": 2.0}), ("zeroshot_seg", {"chunk": 2})])
def test_what_a_task_may_use_up_is_no_part_of_its_protocol(stub, everything, task, given):
    usual = evaluate(stub(torch.eye(5)), {task: {**ALL[task]}}, everything)[task]
    other = evaluate(stub(torch.eye(5)), {task: {**ALL[task], **given}}, everything)[task]
    assert other.protocol == usual.protocol and other.metrics == usual.metrics
    assert not set(given) & set(usual.protocol)
