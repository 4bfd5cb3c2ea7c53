"""What a person sees while a study runs: a bar for each running cell, or plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_EVERY = 20.0  # seconds between lines without a terminal
MOST_LINES = 12  # cells shown one by one
MARKS = {"done": "✓", "failed": "✗", "blocked": "–", "running": "▸", "waiting": "·"}


@dataclass
class CellState:
    """One cell as the runner knows it; `progress` is what its process last wrote to progress.json."""

    name: str
    status: str = "waiting"  # waiting, running, done, failed, blocked
    note: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    started: float | None = None  # clock seconds
    ended: float | None = None
    first: tuple[float, float] | None = None  # (clock, step) when steps were first seen: a resumed run starts late

    def observe(self, progress: dict[str, Any] | None, now: float) -> None:
        """Take in a reading of progress.json."""
        if progress:
            self.progress = progress
            if self.first is None:
                self.first = (now, float(progress.get("step", 0)))

    def left(self, now: float) -> float | None:
        """Seconds of training left, from the pace seen so far; None while there is nothing to go by."""
        step, steps = self.progress.get("step", 0), self.progress.get("steps", 0)
        if self.first is None or step <= self.first[1]:
            return None
        return (now - self.first[0]) / (step - self.first[1]) * (steps - step)

    def spent(self, now: float) -> float | None:
        """Seconds from its start to its end, or to `now`; None for a cell that this call has not started."""
        return None if self.started is None else (self.ended or now) - self.started


def clock(seconds: float) -> str:
    """`75` -> `1:15`; hours are shown when there are any."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def time_left(states: Sequence[CellState], slots: int, now: float) -> float | None:
    """Seconds until every cell is done, if the rest is as fast as what has been seen; None before that."""
    running = [s for s in states if s.status == "running"]
    lefts = [left for s in running if (left := s.left(now)) is not None]
    totals = [spent for s in states if s.status == "done" and (spent := s.spent(now)) is not None]
    totals += [(s.spent(now) or 0.0) + left for s in running if (left := s.left(now)) is not None]
    if not totals:
        return None
    mean = sum(totals) / len(totals)
    unseen = (len(running) - len(lefts)) + sum(s.status == "waiting" for s in states)
    return max((sum(lefts) + unseen * mean) / slots, *lefts, 0.0)


def summary(states: Sequence[CellState], slots: int, began: float, now: float) -> str:
    """`2 of 6 cells done, 2 running, 3:05 elapsed, about 4:10 left`."""
    count = {status: sum(s.status == status for s in states) for status in MARKS}
    parts = [f"{count['done']} of {len(states)} cells done"]
    parts += [f"{count[s]} {s}" for s in ("running", "failed", "blocked") if count[s]]
    parts.append(f"{clock(now - began)} elapsed")
    left = time_left(states, slots, now)
    if left is not None and count["running"]:
        parts.append(f"about {clock(left)} left")
    return ", ".join(parts)


def describe(state: CellState, now: float) -> str:
    """One running cell in words, for logs and plain terminals."""
    seen = state.progress
    if not seen:
        return f"{state.name}: starting, {clock(state.spent(now) or 0)}"
    stage = seen.get("stage", "step")
    text = f"{state.name}: {stage} {seen.get('step', 0)}/{seen.get('steps', 0)}"
    if stage != "step":
        return f"{state.name}: {stage}"
    left = state.left(now)
    text += f", {seen.get('images_per_s', 0):.0f} images/s, data wait {seen.get('data_wait', 0):.0%}"
    return text + (f", {clock(left)} left" if left is not None else "")


def render(states: Sequence[CellState], slots: int, began: float, now: float) -> RenderableType:
    """The whole display: the summary, then a line a cell; of many cells only those running and those that failed."""
    table = Table.grid(padding=(0, 2))
    for state in states if len(states) <= MOST_LINES else [s for s in states if s.status in ("running", "failed")]:
        style = {"failed": "red", "done": "green", "waiting": "dim", "blocked": "dim"}.get(state.status, "")
        head = Text(f"{MARKS[state.status]} {state.name}", style=style)
        if state.status != "running":
            spent = state.spent(now)
            took = Text("" if spent is None else clock(spent), style="dim")
            table.add_row(head, Text(state.note or state.status, style=style), "", "", took)
            continue
        seen = state.progress
        stage = seen.get("stage")
        bar = ProgressBar(total=max(1, seen.get("steps", 1)), completed=seen.get("step", 0), width=24)
        left = state.left(now)
        steps = stage or (f"{seen['step']}/{seen['steps']}" if seen else "starting")
        rate = f"{seen['images_per_s']:.0f} images/s, data {seen['data_wait']:.0%}" if seen and not stage else ""
        table.add_row(head, bar, steps, rate, f"{clock(left)} left" if left is not None and not stage else "")
    return Group(Text(summary(states, slots, began, now), style="bold"), table)


class Display:
    """Context manager fed by the runner's loop."""

    def __init__(self, slots: int, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.slots = slots
        self.began = time.monotonic()
        self._live: Live | None = None
        self._said = self.began
        self._known: dict[str, str] = {}

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, states: Sequence[CellState]) -> None:
        """Show the states; without a terminal, say what changed and, now and then, how far the running cells are."""
        now = time.monotonic()
        if self._live is not None:
            self._live.update(render(states, self.slots, self.began, now))
            return
        for state in states:
            if self._known.get(state.name, "waiting") != state.status:
                self.say(f"{MARKS[state.status]} {state.name}: {state.note or state.status}")
            self._known[state.name] = state.status
        if now - self._said >= PLAIN_EVERY:
            self._said = now
            lines = [describe(s, now) for s in states if s.status == "running"]
            self.say("\n".join([summary(states, self.slots, self.began, now), *(f"  {line}" for line in lines)]))

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
