from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.study.display import CellState, Display
from distill.study.results import load_results
from distill.study.run import StudyResult, alone, divide_machine, plan_study, refreshed
from distill.study.store import read_json

Play = Callable[..., StudyResult]


def started_at(result: StudyResult, cell: str) -> list[int]:
    """The steps at which a fake cell was started, one entry a start."""
    lines = (result.folder / "cells" / cell / "cell.log").read_text().splitlines()
    return [int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("started at step")]


def cell_json(result: StudyResult, cell: str) -> dict:
    content = read_json(result.folder / "cells" / cell / "cell.json")
    assert content is not None
    return content


def test_every_cell_runs_and_a_student_finds_its_teacher(play: Play) -> None:
    result = play()  # the fake student fails unless its teacher's checkpoint is there when it starts
    assert result.complete
    assert sorted(result.outcome.done) == ["ibot-s0", "ibotpp-s0", "unmasked-s0"]
    assert [row["variant"] for row in result.results["rows"]] == ["ibot", "ibotpp", "unmasked"]


def test_finished_cells_are_not_run_again(play: Play) -> None:
    play()
    result = play(seeds=2)
    assert started_at(result, "ibot-s0") == [0]
    assert started_at(result, "ibot-s1") == [0]
    assert len(result.results["rows"]) == 6


def test_a_failing_cell_is_shown_and_stops_only_its_students(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAIL", "ibot")
    result = play()
    assert not result.complete
    assert result.outcome.done == ["ibotpp-s0"]
    assert "the loss is NaN" in result.outcome.failed["ibot-s0"]
    assert result.outcome.blocked == ["unmasked-s0"]
    assert result.results["missing"] == ["ibot-s0", "unmasked-s0"]
    monkeypatch.delenv("FAKE_FAIL")
    again = play()
    assert again.complete
    assert len(started_at(again, "ibotpp-s0")) == 1


@contextmanager
def ctrl_c_at_step_5(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slow cells, and Ctrl-C as soon as one is at step 5."""
    shown = Display.update

    def press(display: Display, states: Sequence[CellState]) -> None:
        shown(display, states)
        if any(s.status == "running" and s.progress.get("step", 0) >= 5 for s in states):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setenv("FAKE_STEPS", "400")
        patch.setenv("FAKE_PAUSE", "0.01")
        patch.setattr(Display, "update", press)
        yield


def test_ctrl_c_stops_the_cells_and_the_next_call_continues(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    with ctrl_c_at_step_5(monkeypatch):
        result = play(parallel=1)
    assert result.outcome.interrupted
    assert not result.outcome.done
    assert (result.folder / "cells" / "ibot-s0" / "run" / "state.json").exists()  # what a checkpoint is to a real cell

    result = play()
    assert result.complete
    first, second = started_at(result, "ibot-s0")
    assert first == 0
    assert second >= 5


def test_a_cell_is_shared_by_every_study_that_names_it(play: Play) -> None:
    play()
    result = play(name="second")
    assert result.complete
    assert "runs/trio/cells/ibot-s0" in cell_json(result, "ibot-s0")["shared"]
    assert not (result.folder / "cells" / "ibot-s0" / "cell.log").exists()  # nothing was started


def test_a_shared_teacher_is_used_where_its_weights_are(play: Play) -> None:
    first = play(only=["ibot"])
    assert first.outcome.done == ["ibot-s0"]
    result = play(name="second", only=["unmasked"])
    assert result.complete
    spec = read_json(result.folder / "cells" / "unmasked-s0" / "spec.json")
    assert spec is not None
    assert spec["overrides"]["teacher.source"].endswith("trio/cells/ibot-s0/run")


def test_a_teacher_without_weights_is_trained_again_when_a_student_needs_it(play: Play) -> None:
    result = play(only=["ibot"])
    shutil.rmtree(result.folder / "cells" / "ibot-s0" / "run")
    untouched = play(only=["ibot"])
    assert len(started_at(untouched, "ibot-s0")) == 1
    result = play()
    assert result.complete
    assert len(started_at(result, "ibot-s0")) == 2


def test_a_shared_teacher_that_was_replaced_is_found_elsewhere_or_trained_again(play: Play) -> None:
    old = play(only=["ibot"])
    address = cell_json(old, "ibot-s0")["address"]
    play(name="second", only=["ibot"])
    play(only=["ibot"], overrides={"train.accelerator": "cpu", "optim.lr": 1e-4})  # sets the old one aside
    result = play(name="second", only=["unmasked"])
    assert teacher_address(result) == address
    shutil.rmtree(old.folder / "cells" / f"ibot-s0.{address[:8]}")
    (result.folder / "cells" / "unmasked-s0" / "cell.json").unlink()
    again = play(name="second", only=["unmasked"])
    assert teacher_address(again) == address
    assert len(started_at(again, "ibot-s0")) == 1


def teacher_address(result: StudyResult) -> str:
    """The address of the cell whose run taught `unmasked`."""
    spec = read_json(result.folder / "cells" / "unmasked-s0" / "spec.json")
    assert spec is not None
    source = Path(spec["overrides"]["teacher.source"].removeprefix("run:"))
    found = read_json(source.parent / "cell.json")
    assert found is not None
    return str(found["address"])


def test_a_cell_with_other_settings_is_set_aside_and_found_again(play: Play) -> None:
    before = play()
    address = cell_json(before, "ibot-s0")["address"]
    after = play(overrides={"train.accelerator": "cpu", "optim.lr": 1e-4})
    assert cell_json(after, "ibot-s0")["address"] != address
    assert cell_json(after, f"ibot-s0.{address[:8]}")["address"] == address
    back = play()
    assert cell_json(back, "ibot-s0")["address"] == address
    assert f"ibot-s0.{address[:8]}" in cell_json(back, "ibot-s0")["shared"]


def test_other_evaluation_settings_run_the_cell_again(play: Play) -> None:
    play()
    result = play(overrides={"train.accelerator": "cpu", "eval.samples": 32})
    assert cell_json(result, "ibot-s0")["eval"]["samples"] == 32
    fewer = play(overrides={"train.accelerator": "cpu", "eval.samples": 32, "eval.tasks": ["knn"]})
    assert len(started_at(fewer, "ibot-s0")) == 2  # a part of the tasks is already there


def test_again_runs_one_variant_anew_and_keeps_the_old_one(play: Play) -> None:
    play()
    result = play(only=["ibotpp"], again=True)
    assert started_at(result, "ibotpp-s0") == [0]
    assert len(started_at(result, "ibot-s0")) == 1
    assert len(list((result.folder / "cells").glob("ibotpp-s0.*/cell.json"))) == 1
    assert len(result.results["rows"]) == 3


def test_again_that_was_stopped_goes_on_and_takes_no_old_cell_back(
    play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    play(keep=kept)
    monkeypatch.setenv("FAKE_FINISHED", "2026-02-02T00:00:00Z")
    with ctrl_c_at_step_5(monkeypatch):
        stopped = play(keep=kept, again=True, parallel=1)
    assert stopped.outcome.interrupted
    assert "--again" not in stopped.restart
    assert set(read_json(stopped.folder / "again.json") or {}) == {"ibot-s0", "ibotpp-s0", "unmasked-s0"}
    play(keep=kept, only=["ibotpp"])
    assert set(read_json(stopped.folder / "again.json") or {}) == {"ibot-s0", "unmasked-s0"}
    result = play(keep=kept)
    first, second = started_at(result, "ibot-s0")
    assert (first, second >= 5) == (0, True)
    for name in ("ibot-s0", "ibotpp-s0", "unmasked-s0"):
        cell = cell_json(result, name)
        assert (cell["shared"], cell["finished"][:10]) == (None, "2026-02-02")
        assert (read_json(kept / "trio" / "cells" / name / "cell.json") or {})["finished"][:10] == "2026-02-02"
    assert not (result.folder / "again.json").exists()


def test_a_cell_that_fails_when_run_again_is_not_replaced_by_the_old_one(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = cell_json(play(), "ibot-s0")["address"]
    monkeypatch.setenv("FAKE_FAIL", "ibot")
    assert "ibot-s0" in play(only=["ibot"], again=True).outcome.failed
    other = play(only=["ibot"], overrides={"train.accelerator": "cpu", "optim.lr": 1e-4})
    assert read_json(other.folder / "again.json") == {"ibot-s0": address}  # other settings are another cell
    monkeypatch.delenv("FAKE_FAIL")
    result = play(only=["ibot"])
    assert (cell_json(result, "ibot-s0")["address"], cell_json(result, "ibot-s0")["shared"]) == (address, None)
    assert not (result.folder / "again.json").exists()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(UserError, match="Another process is running"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_without_a_terminal_changes_are_said_in_lines(play: Play) -> None:
    play()
    said = play.said.splitlines()  # type: ignore[attr-defined]
    assert "✓ ibot-s0: done" in said
    assert said.index("✓ ibot-s0: done") < said.index("▸ unmasked-s0: running")


def test_cores_are_divided_among_cells(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan = plan_study(recipe, {"train.accelerator": "cpu"})
    assert divide_machine(None, plan) == (3, 2, [])  # three cells
    assert divide_machine(2, plan) == (2, 4, [])
    assert divide_machine(16, plan) == (16, 1, [])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # where another study runs beside it
    assert divide_machine(2, plan) == (2, 2, [])
    assert divide_machine(16, plan) == (16, 1, [])
    with pytest.raises(UserError, match="--parallel 0"):
        divide_machine(0, plan)


def test_a_cell_stops_when_its_runner_is_gone(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from distill.study.cell import end_with_parent\n"
        "end_with_parent()\n"
        "print('ready', flush=True)\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.05)
    assert process.poll() is None  # the pipe is open: it goes on
    process.stdin.close()
    try:
        assert process.wait(20) == 130
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.stdout.close()


def test_a_study_on_photographs_asks_for_its_images(edit: Callable[[str, str], Path], play: Play) -> None:
    edit("dataset: scenes", 'dataset: "???"')
    with pytest.raises(UserError, match=r"give eval\.dataset"):
        play()


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(play: Play, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for options in ({"runs": tmp_path / "file"}, {"keep": tmp_path / "file"}, {"keep": tmp_path / "file" / "kept"}):
        with pytest.raises(UserError, match=f"Cannot write to {tmp_path / 'file'}.*Choose another place with --"):
            play(**options)
    assert not list(tmp_path.rglob("spec.json"))


@pytest.mark.parametrize(
    ("old", "new"), [("samples: 16", "samples: 32"), ("tasks: [zeroshot_seg", "tasks: [depth, zeroshot_seg")]
)
def test_a_report_keeps_its_rows_when_the_recipe_evaluates_otherwise_today(
    old: str, new: str, play: Play, edit: Callable[[str, str], Path]
) -> None:
    result = play()
    assert len(result.results["rows"]) == 3
    edit(old, new)
    assert refreshed(result.folder) == load_results(result.folder)


def test_a_report_keeps_its_rows_where_the_cells_are_not_there(play: Play) -> None:
    result = play()
    shutil.rmtree(result.folder / "cells")  # as where results.json alone was committed
    assert refreshed(result.folder) == load_results(result.folder)
    assert len(refreshed(result.folder)["rows"]) == 3
