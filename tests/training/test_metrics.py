from pathlib import Path

import pytest

from distill.config.schema import LogConfig
from distill.errors import UserError
from distill.training.metrics import MetricLog, read_metrics

QUIET = LogConfig(tensorboard=False)


def test_rows_and_late_columns(tmp_path: Path):
    log = MetricLog(tmp_path, QUIET, 0, "r", {})
    log.write(1, {"loss": 2.0})
    log.write(2, {"loss": 1.0, "eval/miou": 0.5})
    log.write(3, {"loss": 0.5})
    assert read_metrics(log.path) == [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0, "eval/miou": 0.5},
        {"step": 3, "loss": 0.5},
    ]


def test_resume_drops_rows_after_the_checkpoint_and_half_lines(tmp_path: Path):
    log = MetricLog(tmp_path, QUIET, 0, "r", {})
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    with log.path.open("a") as file:
        file.write("4,0.")  # killed while writing
    again = MetricLog(tmp_path, QUIET, 2, "r", {})
    again.write(3, {"loss": 30.0})
    assert [r["loss"] for r in read_metrics(log.path)] == [1.0, 2.0, 30.0]


def test_tensorboard_events_are_written(tmp_path: Path):
    log = MetricLog(tmp_path, LogConfig(tensorboard=True), 0, "r", {})
    log.write(1, {"loss": 2.0})
    log.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_wandb_without_the_extra_says_what_to_install(tmp_path: Path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"everypatch\[wandb\]"):
        MetricLog(tmp_path, LogConfig(tensorboard=False, wandb="p"), 0, "r", {})


def test_wandb_knows_a_resumed_run_again_and_no_other_of_its_name(tmp_path: Path, monkeypatch):
    import sys
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    known: list[str] = []
    fake = ModuleType("wandb")
    fake.__spec__ = ModuleSpec("wandb", None)
    fake.init = lambda **settings: known.append(settings["id"])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for folder, step in (("one", 0), ("one", 5), ("two", 0), ("one", 0)):
        (tmp_path / folder).mkdir(exist_ok=True)
        MetricLog(tmp_path / folder, LogConfig(tensorboard=False, wandb="p"), step, "same", {})
    first, resumed, elsewhere, anew = known
    assert first == resumed
    assert len({first, elsewhere, anew}) == 3


def test_wandb_without_the_extra_is_told_before_anything_is_built(small_run, tmp_path: Path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"everypatch\[wandb\]"):
        small_run("a", **{"log.wandb": "p"})
    assert not (tmp_path / "a").exists()
