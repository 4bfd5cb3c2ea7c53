"""What the keys of `optim`, `train`, `guard` and `eval` do to a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from distill.config.schema import EvalConfig
from distill.evals.results import TaskResult
from distill.training import checkpoint, live_eval
from distill.training.guard import Collapse
from distill.training.run import run

ONE = {"train.steps": 1, "optim.warmup": 0.0}
PLAIN_ADAM = {"optim.weight_decay": 0.0, "optim.clip": 0.0, "optim.warmup": 0.0, "optim.schedule": "constant"}


def test_the_learning_rate_of_a_step(build, small_run, saved, column):
    keys = {"optim.lr": 4e-3, "optim.warmup": 0.5, "optim.schedule": "linear", "optim.final": 0.25}
    folder = small_run(**keys).folder
    assert column(folder, "lr/students") == pytest.approx([2e-3, 4e-3, 4e-3, 1e-3])
    first = small_run("first", **PLAIN_ADAM, **{"train.steps": 1, "optim.lr": 4e-3}).folder
    start = build()[1].distiller.students["student"].model.state_dict()
    end = saved(first)["students"]["student"]["weights"]
    name = "image.trunk.blocks.0.attn.qkv.weight"
    moves = (end[name] - start[name]).abs()  # Adam's first step is the learning rate in the direction of the gradient
    assert moves.max() <= 4e-3 * 1.001
    assert moves.median() == pytest.approx(4e-3, rel=1e-2)


def test_clipping_bounds_the_gradient(small_run, saved, rows):
    def run_with(clip: float) -> tuple[float, dict[str, float]]:
        keys = PLAIN_ADAM | {"optim.clip": clip, "optim.betas": [0.5, 0.9], "train.steps": 1}
        folder = small_run(f"clip{clip}", **keys).folder
        averages = [s["exp_avg"] / 0.5 for s in saved(folder)["optimizers"]["students"]["state"].values()]
        return torch.stack([a.norm() for a in averages]).norm().item(), rows(folder)[0]

    free, row = run_with(0.0)
    assert "gradient_norm" not in row
    bounded, row = run_with(0.01)
    assert row["gradient_norm"] == pytest.approx(free, rel=1e-4)  # what it was before clipping
    assert free > 0.1
    assert bounded == pytest.approx(0.01, rel=1e-3)


def test_clipping_one_student_leaves_the_others_alone(small_run, saved):
    teacher = small_run("teacher", **ONE).folder
    keys = ONE | {"teacher.mode": "frozen", "teacher.source": f"run:{teacher}", "optim.clip": 0.01}
    one, other = ({"name": name, "arch": "tiny/8", "depth": depth} for name, depth in (("one", 1), ("other", 2)))
    alone = small_run("alone", **keys, students=[one]).folder
    beside = small_run("beside", **keys, students=[one, other]).folder
    first, both = (saved(folder)["optimizers"]["students"]["state"] for folder in (alone, beside))
    for number, state in first.items():  # the first student's parameters come first
        torch.testing.assert_close(both[number]["exp_avg"], state["exp_avg"], rtol=1e-4, atol=1e-9)


def test_optim_keys_reach_the_optimiser(small_run, saved):
    keys = {"optim.weight_decay": 0.3, "optim.betas": [0.5, 0.7], "optim.layer_decay": 0.5, "students.0.depth": 2}
    groups = saved(small_run(**ONE, **keys).folder)["optimizers"]["students"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    assert {tuple(group["betas"]) for group in groups} == {(0.5, 0.7)}
    assert {group["lr"] / 1e-3 for group in groups} == {1.0, 0.5, 0.25}  # head and last block, first block, embedding
    adafactor = saved(small_run("b", **ONE, **{"optim.name": "adafactor"}).folder)["optimizers"]["students"]
    assert any("row_var" in state for state in adafactor["state"].values())


def test_steps_rows_and_checkpoints(small_run, column):
    keys = {"train.steps": 7, "train.log_every": 2, "train.checkpoint_every": 3, "train.keep": 2}
    folder = small_run(**keys).folder
    assert column(folder, "step") == [2, 4, 6, 7]
    assert [path.stem for path in checkpoint.existing(folder / "checkpoints")] == ["step_00000006", "step_00000007"]
    each = small_run("each", **keys | {"train.log_every": 1, "train.keep": 9}).folder
    steps = [int(path.stem.split("_")[1]) for path in checkpoint.existing(each / "checkpoints")]
    assert steps == [3, 6, 7]
    losses = column(each, "loss")  # a row is the mean over the steps since the last one
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, (losses[4] + losses[5]) / 2, losses[6]]
    assert column(folder, "loss") == pytest.approx(means, rel=1e-4)


def test_the_name_is_the_folder(tmp_path: Path, small):
    runs = [run("pretrain/scenes_tiny", small(name=name, **ONE), runs=tmp_path) for name in ("mine", "")]
    assert [result.folder for result in runs] == [tmp_path / "mine", tmp_path / "scenes_tiny"]
    assert all((result.folder / "metrics.csv").exists() for result in runs)


def test_collapse_is_looked_for_every_so_many_steps(small_run, rows):
    folder = small_run(**{"guard.every": 2, "train.steps": 5}).folder
    assert [row["step"] for row in rows(folder) if "guard/rank" in row] == [2, 4]
    never = small_run("never", **{"guard.every": 0, "guard.min_rank": 1000.0, "guard.patience": 1}).folder
    assert not any(name.startswith("guard/") for row in rows(never) for name in row)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"guard.min_entropy": 1.0}, r"Step 2: collapsed: patch_entropy is .*, below 1 for 2 checks"),
        ({"guard.min_rank": 900.0}, r"Step 2: collapsed: rank is .*, below 900 for 2 checks"),
    ],
)
def test_limits_of_the_guard_stop_a_run(small_run, limit, message):
    keys = {"guard.every": 1, "guard.patience": 2, "guard.min_entropy": 0.0, "guard.min_rank": 1.0}
    with pytest.raises(Collapse, match=message):
        small_run(**keys | limit)


def test_live_evaluation(small_run, rows):
    """Which steps, tasks, data and how much of it."""
    keys = {"eval.every": 2, "eval.tasks": ["retrieval"], "eval.dataset": "scenes:40", "eval.samples": 9}
    folder = small_run(**keys, **{"train.steps": 5}).folder
    files = sorted((folder / "evals").iterdir())
    assert [file.name for file in files] == [f"step_0000000{n}.json" for n in (2, 4, 5)]
    results = json.loads(files[0].read_text())["student"]
    assert list(results) == ["retrieval"]
    assert results["retrieval"]["dataset"] == "scenes:40 test"
    assert results["retrieval"]["counts"]["images"] == 9
    logged = [row["step"] for row in rows(folder) if any(name.startswith("eval/student/retrieval/") for name in row)]
    assert logged == [2, 4, 5]


def test_live_evaluation_with_datasets_of_their_own(small_run):
    """A task on another dataset, with an option; the others stay on `eval.dataset`."""
    keys = {"eval.tasks": ["retrieval", "knn"], "eval.dataset": "scenes:40", "eval.samples": 9}
    settings = ["knn=scenes:48", "knn.k=3"]
    folder = small_run(**keys, **{"eval.settings": settings, "train.steps": 1}).folder
    results = json.loads((folder / "evals/step_00000001.json").read_text())["student"]
    assert [results[task]["dataset"] for task in ("retrieval", "knn")] == ["scenes:40 test", "scenes:48 test"]
    assert results["knn"]["protocol"]["k"] == [3]


def test_live_evaluation_asks_a_model_without_texts_for_none():
    class Vision:
        encode_text = None
        asked: ClassVar[list] = []

    def evaluate(model, tasks, dataset, samples):
        model.asked.append(list(tasks))
        return {task: TaskResult(task, dataset, {}, {}, {}, 0.0) for task in tasks}

    config = EvalConfig(tasks=["zeroshot_seg", "knn", "retrieval"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_eval, "evaluate", evaluate)
        assert list(live_eval._evaluate(Vision(), config)) == ["knn"]
    assert Vision.asked == [["knn"]]


def test_without_a_period_evaluation_comes_at_the_end(small_run, monkeypatch, rows):
    asked = []

    def evaluate(model, tasks, dataset, samples):
        asked.append((list(tasks), dataset, samples))
        return {task: TaskResult(task, dataset, {"score": 0.5}, {}, {}, 0.0) for task in tasks}

    monkeypatch.setattr(live_eval, "evaluate", evaluate)
    folder = small_run(**{"eval.tasks": ["knn", "zeroshot_seg"]}).folder
    assert asked == [(["knn", "zeroshot_seg"], "scenes", 256)]
    assert rows(folder)[-1]["eval/student/knn/score"] == 0.5
    assert small_run("none").metrics.keys() & {"eval/student/knn/score"} == set()
    assert len(asked) == 1
