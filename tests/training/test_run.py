"""A run's promises: its papers, exact resume, clean stops, refusals."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from distill.data.failures import Failures
from distill.data.sample import SampleError
from distill.errors import UserError
from distill.training import checkpoint, precision
from distill.training.distiller import Distiller
from distill.training.guard import Collapse
from distill.training.metrics import MetricLog, read_metrics
from distill.training.papers import PAPERS
from distill.training.run import _report_lost, run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that training moves, flat: students, heads, averages, centres, optimiser state."""
    saved = torch.load(checkpoint.existing(folder / "checkpoints")[-1], weights_only=True)
    flat: dict[str, torch.Tensor] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            flat[prefix] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}.{key}", item)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                walk(f"{prefix}.{i}", item)

    for part in ("students", "teacher", "teacher_learner", "optimizers", "rng"):
        walk(part, saved[part])
    return flat


def assert_identical(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert len(first) > 50
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different[:10]


def command(tmp_path: Path, overrides: dict[str, object], *flags: str) -> list[str]:
    words = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return [sys.executable, "-m", "distill", "run", "pretrain/scenes_tiny", *words, "--runs", str(tmp_path), *flags]


def wait_for_checkpoint(folder: Path, step: int, process: subprocess.Popen, seconds: float = 120) -> None:
    target = checkpoint.path_of(folder / "checkpoints", step)
    end = time.monotonic() + seconds
    while not target.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run made no checkpoint in time"
        time.sleep(0.02)


def test_a_run_writes_its_papers_and_trains(small_run):
    result = small_run(**{"train.steps": 6, "optim.lr": 3e-3})
    folder = result.folder
    assert result.finished
    assert result.step == 6
    for name in (*PAPERS, "metrics.csv", "progress.json"):
        assert (folder / name).stat().st_size > 0, name
    rows = read_metrics(folder / "metrics.csv")
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    for term in ("contrastive", "cls", "patch", "patch_masked", "patch_visible"):
        assert all(f"student/{term}" in r for r in rows), term
    assert rows[-1]["student/contrastive"] < rows[0]["student/contrastive"] + 0.5
    assert torch.__version__.startswith(json.loads((folder / "env.json").read_text())["packages"]["torch"])
    assert json.loads((folder / "progress.json").read_text())["step"] == 6
    # the total is the weighted sum of its parts: 1, 1 and 2 (appendix A.9)
    row = rows[2]
    parts = row["student/contrastive"] + row["student/cls"] + 2 * row["student/patch"]
    assert row["loss"] == pytest.approx(parts, rel=1e-4)
    # and the patch loss is the token-weighted mean of its two parts: 12 of 16 masked
    assert row["student/patch"] == pytest.approx(
        0.75 * row["student/patch_masked"] + 0.25 * row["student/patch_visible"], rel=1e-4
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_and_resume_is_bit_identical(tmp_path: Path, small, small_run, workers: int):
    changes = {"train.steps": 12, "train.checkpoint_every": 3, "data.workers": workers, "text.dropout": 0.1}
    changes |= {"train.accumulate": 2} if workers else {}
    whole = small_run("whole", **changes).folder
    process = subprocess.Popen(command(tmp_path, small(name="killed", **changes)), stderr=subprocess.DEVNULL)
    wait_for_checkpoint(tmp_path / "killed", 6, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.existing(tmp_path / "killed" / "checkpoints")[-1].name != "step_00000012.pt"
    result = small_run("killed", resume=True, **changes)
    assert result.step == 12
    assert_identical(whole, result.folder)
    steps = [r["step"] for r in read_metrics(result.folder / "metrics.csv")]
    assert steps == list(range(1, 13))


def test_two_students_of_a_cotrained_teacher_resume_bit_identically(tmp_path: Path, small_run):
    """Both optimisers, both students, the spare average, averaged heads and centres, dropout in every text tower."""
    changes = {
        "students": [
            {"name": "one", "arch": "tiny/8", "depth": 1, "ema": 0.5},
            {"name": "two", "arch": "tiny/8", "depth": 2, "init": "layers", "layers": [1, 0]},
        ],
        "teacher.mode": "cotrained",
        "teacher.arch": "tiny/8",
        "teacher.depth": 2,
        "teacher.lr": 2e-3,
        "text.dropout": 0.1,
        "train.checkpoint_every": 2,
        "train.keep": 9,
    }
    whole = small_run("whole", **changes).folder
    shutil.copytree(whole, tmp_path / "killed")
    checkpoint.path_of(tmp_path / "killed" / "checkpoints", 4).unlink()  # what a kill after step 2 leaves
    result = small_run("killed", resume=True, **changes)
    assert_identical(whole, result.folder)
    names = set(weights(whole))
    assert any(name.startswith("students.one.ema.") for name in names)
    assert any(name.startswith("optimizers.teacher.state.") for name in names)
    assert any(name.startswith("teacher_learner.weights.") for name in names)


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path, small_run):
    whole = small_run("whole").folder
    (tmp_path / "early" / "checkpoints").mkdir(parents=True)
    (tmp_path / "early" / "checkpoints" / "step_00000002.pt.partial").write_bytes(b"half")
    assert_identical(whole, small_run("early", resume=True).folder)


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path, small, small_run):
    changes = {"train.steps": 400, "train.checkpoint_every": 2}
    process = subprocess.Popen(
        command(tmp_path, small(name="stopped", **changes)), stderr=subprocess.PIPE, text=True, env=os.environ
    )
    wait_for_checkpoint(tmp_path / "stopped", 2, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    step = torch.load(checkpoint.existing(tmp_path / "stopped" / "checkpoints")[-1], weights_only=True)["step"]
    assert 2 <= step < 400
    assert f"step {step} of 400" in " ".join(said.split())


def test_finished_runs_resume_to_nothing_and_new_runs_need_a_new_folder(small_run):
    first = small_run()
    again = small_run(resume=True)
    assert (again.step, again.finished) == (first.step, True)
    with pytest.raises(UserError, match=r"already holds a run.*--resume.*name="):
        small_run()


def test_one_command_begins_and_goes_on(small_run, capsys):
    """As a job that is queued again is submitted."""
    assert small_run("queued", resume=True, **{"train.steps": 2}).step == 2
    assert "No checkpoint in" in capsys.readouterr().err
    assert small_run("queued", resume=True).step == 4
    assert "No checkpoint in" not in capsys.readouterr().err
    small_run("queued", resume=True)
    assert "is finished: 4 steps" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_is_further_than_it_is_asked_to_go_is_refused(small_run):
    folder = small_run().folder
    before = (folder / "resolved.yaml").read_text()
    with pytest.raises(UserError, match=r"has 4 steps already, but train.steps is 2.*name=OTHER"):
        small_run(resume=True, **{"train.steps": 2})
    assert (folder / "resolved.yaml").read_text() == before


def test_a_full_disk_is_said(small_run, monkeypatch):
    """What is only looked at does not end a run; the metrics do, in words."""
    real = Path.write_text

    def full(path, *args, **options):
        if path.name.startswith("progress.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert small_run().finished
    monkeypatch.setattr(MetricLog, "_rewrite", lambda *_: full(Path("progress.json")))
    with pytest.raises(UserError, match=r"Cannot write .*metrics.csv: No space left on device. Free some space"):
        small_run("b")


def test_what_was_lost_is_printed_as_it_is_named(capsys):
    failures = Failures(damaged=[SampleError("photos [old]/a.tar", "set/cat[/x]", "corrupt image")])
    _report_lost(failures, 0, 64, Console(stderr=True), True)
    assert "photos [old]/a.tar: set/cat[/x]: corrupt image" in capsys.readouterr().err


def test_a_start_that_failed_does_not_block_the_next(small_run):
    with pytest.raises(UserError, match="No run or checkpoint at"):
        small_run(**{"teacher.mode": "frozen", "teacher.source": "run:nowhere"})
    assert small_run().finished


def test_an_evaluation_that_would_fail_is_refused_before_training(small_run, tmp_path: Path):
    for changes in ({"eval.dataset": "folder:/nope"}, {"eval.settings": ["knn.k=foo"], "eval.tasks": ["knn"]}):
        with pytest.raises(UserError):
            small_run(**{"eval.tasks": ["zeroshot_seg"]} | changes)
        assert not (tmp_path / "a" / "metrics.csv").exists()


def test_a_last_evaluation_that_fails_loses_no_step(small_run, tmp_path: Path, monkeypatch, rows):
    def fail(state, folder):
        raise UserError("no")

    monkeypatch.setattr("distill.training.run.live_evaluation", fail)
    with pytest.raises(UserError):
        small_run(**{"eval.tasks": ["zeroshot_seg"]})
    assert checkpoint.step_of(checkpoint.existing(tmp_path / "a" / "checkpoints")[-1]) == 4
    assert rows(tmp_path / "a")[-1]["step"] == 4


def test_a_finished_run_says_what_it_came_to(small_run, capsys):
    folder = small_run(**{"eval.tasks": ["zeroshot_seg"], "eval.samples": 16}).folder
    told = capsys.readouterr().err
    assert f"Finished: {folder}, 4 steps, loss " in told
    assert "\n  student/zeroshot_seg/miou_value 0." in told
    assert f"distill eval run:{folder} TASK=DATASET" in told


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("students.0.depth", 2, r"students\.0\.depth: 1 in the checkpoint, 2 now"),
        ("captions.cls2", [], r"captions\.cls2"),
        ("optim.name", "adafactor", r"has the state of optim.name=adamw"),
    ],
)
def test_another_model_or_optimiser_is_refused_in_words(small_run, key, value, said):
    small_run()
    with pytest.raises(UserError, match=said):
        small_run(resume=True, **{key: value, "train.steps": 6})


def test_resume_under_another_objective_is_refused(small_run):
    small_run()
    with pytest.raises(UserError, match=r"objective.patch.tokens: 'all' in the checkpoint, 'masked' now"):
        small_run(resume=True, **{"objective.patch.tokens": "masked", "train.steps": 6})


def test_a_refused_resume_leaves_the_papers_as_they_were(small_run):
    folder = small_run().folder
    before = [(folder / name).read_text() for name in PAPERS]
    for changes in ({"views.flip": 0.1}, {"seed": 9}):
        with pytest.raises(UserError):
            small_run(resume=True, **changes, **{"train.steps": 6})
    assert [(folder / name).read_text() for name in PAPERS] == before


def test_a_resumed_run_says_what_it_does_otherwise(tmp_path: Path, small, small_run, capsys):
    small_run()
    small_run(resume=True, **{"train.steps": 6, "optim.lr": 0.5})
    told = " ".join(capsys.readouterr().err.split())
    assert "Goes on with other settings than before: optim.lr" in told
    assert "-> 0.5, train.steps 4 -> 6." in told


def test_a_resumed_run_takes_the_optimisers_settings_of_its_recipe(small_run, saved):
    small_run()
    folder = small_run(resume=True, **{"train.steps": 6, "optim.weight_decay": 0.7, "optim.betas": [0.5, 0.6]}).folder
    groups = saved(folder)["optimizers"]["students"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.7, 0.0}
    assert {tuple(group["betas"]) for group in groups} == {(0.5, 0.6)}
    with pytest.raises(UserError, match=r"groups weights for optim.layer_decay=1 and .* Resume with the original"):
        small_run(resume=True, **{"train.steps": 8, "optim.layer_decay": 0.5})


def test_a_checkpoint_without_a_loss_scale_is_gone_on_with_in_fp16(small_run, monkeypatch):
    small_run()
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    monkeypatch.setattr("distill.training.state_io.scaler_of", lambda fabric: scaler)
    assert small_run(resume=True, **{"train.steps": 5}).step == 5


def test_a_damaged_checkpoint_is_named(small_run):
    folder = small_run().folder
    path = checkpoint.existing(folder / "checkpoints")[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"step_00000004\.pt"):
        small_run(resume=True, **{"train.steps": 6})


def test_divergence_stops_with_the_term_and_keeps_the_last_good_checkpoint(small_run, tmp_path: Path):
    with pytest.raises(Collapse, match=r"Step \d+: .*Try: lower optim.lr"):
        small_run("bad", **{"optim.lr": 1e12, "optim.warmup": 0.0, "train.checkpoint_every": 1, "train.steps": 50})
    kept = checkpoint.existing(tmp_path / "bad" / "checkpoints")
    assert kept
    for name, value in weights(tmp_path / "bad").items():
        assert not value.is_floating_point() or torch.isfinite(value).all(), name


def test_a_bad_micro_batch_is_seen_though_the_last_one_is_good(small_run, tmp_path: Path, monkeypatch):
    forward, calls = Distiller.forward, []

    def spoilt(self, *args, **more):
        output = forward(self, *args, **more)
        if not more and not calls:  # the first with losses
            calls.append(1)
            output.parts["student/patch"] = output.parts["student/patch"] * torch.nan
            output.loss = output.loss * torch.nan
        return output

    monkeypatch.setattr(Distiller, "forward", spoilt)
    with pytest.raises(Collapse, match="Step 1: student/patch loss is nan"):
        small_run("bad", **{"train.accumulate": 2, "optim.clip": 0.0, "train.checkpoint_every": 1})
    assert not checkpoint.existing(tmp_path / "bad" / "checkpoints")


def test_collapse_stops_a_run(small_run):
    with pytest.raises(Collapse, match=r"rank is .*below 1e\+03 for 2 checks in a row"):
        small_run(**{"guard.every": 1, "guard.min_rank": 1000.0, "guard.patience": 2})


@pytest.mark.parametrize("micro_batches", [4, 8])
def test_few_images_at_once_are_no_collapse(small_run, column, micro_batches):
    changes = {"train.batch": 8, "train.accumulate": micro_batches, "guard.every": 1, "train.steps": 5}
    folder = small_run(**changes).folder
    assert np.isfinite(column(folder, "guard/patch_entropy")).all()
    assert "guard/rank" not in (folder / "metrics.csv").read_text().splitlines()[0]


def test_a_tower_frozen_in_the_second_stage_keeps_what_the_first_one_learnt(small_run, saved):
    first = small_run("first").folder
    second = small_run("second", **{"train.stage_from": str(first), "text.freeze": True}).folder
    before, after = (saved(folder)["students"]["student"]["weights"] for folder in (first, second))
    same = {name: torch.equal(value, after[name]) for name, value in before.items()}
    assert {value for name, value in same.items() if name.startswith("text.")} == {True}
    assert not all(same.values())


def test_second_stage_at_high_resolution_continues_from_a_run(small_run, tmp_path: Path):
    first = small_run("low")
    stage = {"train.stage_from": str(first.folder), "views.global_size": 48, "data.scenes.size": 48, "train.steps": 1}
    stage |= {"teacher.momentum.start": 1.0}  # averages stay
    before = weights(first.folder)
    after = weights(small_run("high", **stage, **{"optim.lr": 1e-9, "objective.center_momentum": 1.0}).folder)
    carried = [n for n in before if n.startswith(("students.", "teacher.state.heads."))]
    assert any("center" in n for n in carried)
    assert [n for n in carried if not torch.allclose(before[n], after[n], atol=1e-6)] == []
    with pytest.raises(UserError, match=r"no student 'other'\. It has: student"):
        small_run("x", **{"train.stage_from": str(first.folder), "students.0.name": "other"})


def test_a_second_stage_needs_the_first_one_only_to_begin(small_run, tmp_path: Path):
    first = small_run("low")
    stage = {"train.stage_from": f"run:{first.folder}", "train.checkpoint_every": 2}
    small_run("high", **stage, **{"train.steps": 2})
    first.folder.rename(tmp_path / "elsewhere")
    assert small_run("high", resume=True, **stage, **{"train.steps": 4, "text.tokenizer": "words"}).step == 4


def test_a_second_stage_keeps_the_words_of_the_first(small_run, saved):
    words = {"text.vocabulary": 24}  # full in both worlds, of different words
    one, other = (saved(small_run(f"w{seed}", **words, **{"data.scenes.seed": seed}).folder) for seed in (0, 3))
    spec = [content["students"]["student"]["spec"]["tokenizer"] for content in (one, other)]
    assert spec[0] != spec[1]
    stage = {"train.stage_from": str(small_run("first", **words).folder), "data.scenes.seed": 3}
    second = saved(small_run("second", **words, **stage).folder)
    assert second["students"]["student"]["spec"]["tokenizer"] == spec[0]


def test_a_text_tower_of_another_run_brings_its_words(small_run, saved):
    first = small_run("first", **{"text.vocabulary": 24}).folder
    start = {"text.init": f"run:{first}", "data.scenes.seed": 3, "text.vocabulary": 30}  # other words there are
    second = saved(small_run("second", **start, **{"train.checkpoint_every": 1, "train.steps": 1}).folder)
    spec = [content["students"]["student"]["spec"]["tokenizer"] for content in (saved(first), second)]
    assert spec[0] == spec[1]
    with pytest.raises(UserError, match="has another tokenizer"):
        small_run("third", **start, **{"text.tokenizer": "clip"})


def test_a_run_goes_on_without_what_its_students_began_with(tmp_path: Path, small_run):
    first = small_run("first").folder
    changes = {"students": [{"name": "student", "arch": "tiny/8", "depth": 1, "init": f"run:{first}"}]}
    changes |= {"text.init": f"run:{first}", "train.steps": 4, "train.checkpoint_every": 2, "train.keep": 9}
    whole = small_run("whole", **changes).folder
    shutil.copytree(whole, tmp_path / "stopped")
    checkpoint.path_of(tmp_path / "stopped" / "checkpoints", 4).unlink()
    first.rename(tmp_path / "elsewhere")
    result = small_run("stopped", resume=True, **changes)
    assert result.step == 4
    assert_identical(whole, result.folder)
    with pytest.raises(UserError, match="first"):
        small_run("another", **changes)


def test_a_second_stage_without_averages_may_follow_a_run_without_targets(small_run):
    first = small_run("plain", **{"objective.patch.weight": 0.0, "objective.cls.weight": 0.0})
    small_run("second", **{"train.stage_from": str(first.folder), "teacher.mode": "none"})


def test_a_second_stage_that_averages_more_begins_with_the_first_ones_student(small_run):
    first = small_run("first", **{"teacher.mode": "ema_head", "optim.lr": 1e-2})
    stage = {"train.stage_from": str(first.folder), "teacher.mode": "ema", "teacher.momentum.start": 1.0}
    after = weights(small_run("second", **stage, **{"train.steps": 1}).folder)
    before = weights(first.folder)
    marks = ("teacher.state.trunk.", "students.student.weights.image.")
    trunk = {n.removeprefix(marks[0]): value for n, value in after.items() if n.startswith(marks[0])}
    assert len(trunk) > 10
    assert [n for n, value in trunk.items() if not torch.equal(value, before[marks[1] + n])] == []


def test_precision_and_device_errors_are_plain(small_run):
    with pytest.raises(UserError, match=r"fp16 needs a GPU"):
        small_run(**{"train.precision": "fp16"})
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"0 CUDA device"):
            small_run("b", **{"train.accelerator": "cuda", "train.precision": "fp32"})


def test_dry_run_writes_nothing(tmp_path: Path, small):
    result = run("pretrain/scenes_tiny", small(name="dry"), runs=tmp_path, dry_run=True)
    assert not result.folder.exists()


def test_settings_may_be_keywords(tmp_path: Path, small):
    import distill

    settings = {k: v for k, v in small(name="kw").items() if not k.startswith("train.")}
    train = {k.removeprefix("train."): v for k, v in small().items() if k.startswith("train.")}
    result = distill.run("pretrain/scenes_tiny", runs=tmp_path, train=train | {"steps": 1}, **settings)
    assert result.step == 1
    with pytest.raises(UserError, match=r"either as strings .* or as keywords"):
        distill.run("pretrain/scenes_tiny", ["train.steps=1"], seed=1)
    with pytest.raises(UserError, match="train is given twice"):
        distill.run("pretrain/scenes_tiny", {"train": {"steps": 1}}, train={"batch": 8})


def test_bf16_where_the_cpu_has_none_is_said(tmp_path: Path, small, monkeypatch):
    for fast, said in ((False, True), (True, False)):
        monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda fast=fast: fast)
        written = io.StringIO()
        asked = small(**{"train.precision": "bf16"})
        run("pretrain/scenes_tiny", asked, runs=tmp_path, dry_run=True, console=Console(file=written, width=120))
        assert ("train.precision=auto" in written.getvalue()) == said


def test_the_banner_shows_lists_and_globs_as_they_are(tmp_path: Path, small):
    written = io.StringIO()
    console = Console(file=written, width=120)
    run("pretrain/scenes_tiny", small(**{"captions.cls2": ["detailed"]}), runs=tmp_path, dry_run=True, console=console)
    assert "captions.cls2: [synthetic] -> [detailed]" in written.getvalue()
