from __future__ import annotations

import io

import pytest
from rich.console import Console

from distill.study.display import CellState, clock, describe, render, time_left


def running(name: str, step: int, first: tuple[float, float], **more: object) -> CellState:
    progress = {"step": step, "steps": 100, "images_per_s": 310.0, "data_wait": 0.04, **more}
    return CellState(name, "running", progress=progress, started=0.0, first=first)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75, "1:15"), (3661, "1:01:01"), (-3, "0:00")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_time_left_of_a_resumed_cell_counts_only_the_steps_seen() -> None:
    state = running("a", step=70, first=(10.0, 60.0))  # ten steps in twenty seconds
    assert state.left(now=30.0) == pytest.approx(60.0)
    assert running("a", step=60, first=(10.0, 60.0)).left(now=30.0) is None


def test_time_left_of_the_study_counts_waiting_cells() -> None:
    done = CellState("a", "done", started=0.0, ended=100.0)
    waiting = [CellState("b"), CellState("c")]
    assert time_left([done, *waiting], slots=2, now=100.0) == pytest.approx(100.0)
    assert time_left(waiting, slots=2, now=0.0) is None


def test_first_reading_fixes_the_start() -> None:
    state = CellState("a", "running")
    state.observe(None, 5.0)
    state.observe({"step": 40, "steps": 100}, 6.0)
    state.observe({"step": 50, "steps": 100}, 11.0)
    assert state.first == (6.0, 40.0)
    assert state.left(11.0) == pytest.approx(25.0)


def test_words_of_a_running_cell() -> None:
    text = describe(running("ibot-s0", 50, (0.0, 0.0)), now=50.0)
    assert text == "ibot-s0: step 50/100, 310 images/s, data wait 4%, 0:50 left"
    assert describe(running("ibot-s0", 100, (0.0, 0.0), stage="evaluating"), now=50.0) == "ibot-s0: evaluating"


def test_display_has_a_line_a_cell() -> None:
    states = [
        running("ibot-s0", 50, (0.0, 0.0)),
        CellState("ibotpp-s0", "failed", note="failed (status 1)"),
        CellState("all-s0"),
    ]
    out = io.StringIO()
    Console(file=out, width=120).print(render(states, slots=2, began=0.0, now=50.0))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("0 of 3 cells done, 1 running, 1 failed, 0:50 elapsed")
    assert "50/100" in lines[1]
    assert "310 images/s, data 4%" in lines[1]
    assert "0:50 left" in lines[1]
    assert "failed (status 1)" in lines[2]
    assert "waiting" in lines[3]


def test_of_many_cells_only_the_running_and_failed_are_listed() -> None:
    states = [running("busy", 50, (0.0, 0.0)), CellState("broken", "failed"), *(CellState(f"w{i}") for i in range(30))]
    out = io.StringIO()
    Console(file=out, width=120).print(render(states, slots=2, began=0.0, now=50.0))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "of 32 cells" in lines[0]
