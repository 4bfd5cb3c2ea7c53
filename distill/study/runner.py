"""Runs the missing cells of a study, several at once, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.study.again import Again
from distill.study.display import CellState, Display
from distill.study.plan import Cell, Plan
from distill.study.store import (
    LOG,
    PROGRESS,
    RESULT,
    RUN,
    SPEC,
    adopt,
    find_shared,
    index_results,
    is_done,
    matches,
    read_json,
    set_aside,
    weights_folder,
    write_json,
)

Command = Callable[[Path], Sequence[str]]
"""Path of a cell's spec.json -> the command that runs the cell."""

POLL = 0.25  # seconds between looks at the running cells
GRACE = 120.0  # seconds an interrupted cell has for its checkpoint
TAIL = 12  # lines of a failed cell's log that are shown


def cell_command(spec: Path) -> list[str]:
    return [sys.executable, "-m", "distill.study.cell", str(spec)]


@dataclass
class Outcome:
    """What became of the cells asked for, by name."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # -> last lines of its log
    blocked: list[str] = field(default_factory=list)  # their teacher failed
    interrupted: bool = False


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    slot: int


class Runner:
    """Runs cells in order of need: a student starts when its teacher is done.

    `slots` cells run at once with `threads` CPU threads each; `gpus` are handed out by slot. Finished cells are taken
    from all studies beside this one and from those in `kept`; `on_done` is told of every cell that is done.
    """

    def __init__(
        self,
        plan: Plan,
        display: Display,
        slots: int,
        threads: int,
        gpus: Sequence[str] = (),
        command: Command = cell_command,
        kept: Path | None = None,
        on_done: Callable[[Cell], None] = lambda cell: None,
    ):
        self.plan, self.display, self.command = plan, display, command
        self.slots, self.threads, self.gpus = slots, threads, list(gpus)
        self.kept, self.on_done = kept, on_done
        self.states: dict[str, CellState] = {}
        self.running: dict[str, Running] = {}
        self.again = Again(plan.root)
        self.index: dict[str, list[Path]] = {}  # address -> folders of finished cells, when the run began

    def run(self, names: Iterable[str], again: Iterable[str] = ()) -> Outcome:
        """Bring the cells `names` to an end; those in `again` are set aside first and run anew.

        A failing cell does not stop the others. Ctrl-C lets the running cells write a checkpoint; a later call
        continues where they stopped, also with cells that an earlier call was to run anew.
        """
        wanted = [n for n in self.plan.cells if n in set(names)]
        for cell in [self.plan.cells[name] for name in again]:
            if self.plan.folder(cell).exists():
                set_aside(self.plan.folder(cell))
            self.again.add(cell)
        self.states = {n: CellState(n) for n in wanted}
        self._settle(wanted)
        try:
            while any(s.status in ("waiting", "running") for s in self.states.values()):
                self._start_ready()
                self.display.update(list(self.states.values()))
                time.sleep(POLL)
                self._look()
        except KeyboardInterrupt:
            self._stop()
            return self._outcome(interrupted=True)
        finally:
            self.display.update(list(self.states.values()))
        return self._outcome()

    # -------------------------------------------------------------------------------------------- before

    def _settle(self, wanted: Sequence[str]) -> None:
        """Mark what is finished, here or in another study; make room where a folder holds another cell."""
        self.index = index_results(self.plan.root.parent, *([self.kept] if self.kept else []))
        for name in wanted:
            cell = self.plan.cells[name]
            folder = self.plan.folder(cell)
            if is_done(read_json(folder / RESULT), cell, self.plan.eval):
                self._mark(name, "done", "already done")
                continue
            if folder.exists() and not self._same(folder, cell):
                set_aside(folder)
            shared = None if cell in self.again else self._shared(cell)
            if shared is not None and shared != folder:
                adopt(shared, folder, cell)
                self._mark(name, "done", f"shared with {shared}")
        for name in reversed(wanted):  # a student that must run needs its teacher's weights
            teacher = self.plan.cells[name].teacher
            if not teacher or self.states[name].status != "waiting" or self.states[teacher].status != "done":
                continue
            if self._weights(self.plan.cells[teacher]) is None:
                self.display.say(f"{teacher} has a result but no weights, which {name} needs: it is trained again.")
                self._mark(teacher, "waiting", "")

    def _shared(self, cell: Cell) -> Path | None:
        return find_shared(self.index.get(cell.address, []), cell, self.plan.eval)

    def _weights(self, cell: Cell) -> Path | None:
        """The folder that has a finished cell's weights, here or in another study."""
        return weights_folder(self.plan.folder(cell), cell.address, self.index.get(cell.address, []))

    def _same(self, folder: Path, cell: Cell) -> bool:
        """Whether a folder belongs to this very cell, finished or not."""
        result, spec = read_json(folder / RESULT), read_json(folder / SPEC)
        if result is not None:
            return matches(result, cell)
        return spec is not None and spec.get("address") == cell.address

    # -------------------------------------------------------------------------------------------- during

    def _start_ready(self) -> None:
        for name, state in self.states.items():
            if state.status != "waiting":
                continue
            teacher = self.plan.cells[name].teacher
            status = self.states[teacher].status if teacher else "done"
            if status in ("failed", "blocked"):
                self._mark(name, "blocked", f"not run: its teacher {teacher} {status}")
            elif status == "done" and len(self.running) < self.slots:
                self._start(name)

    def _start(self, name: str) -> None:
        cell = self.plan.cells[name]
        folder = self.plan.folder(cell)
        write_json(folder / SPEC, self.spec(cell))
        (folder / RESULT).unlink(missing_ok=True)  # its presence means done
        (folder / RUN / PROGRESS).unlink(missing_ok=True)
        taken = {r.slot for r in self.running.values()}
        slot = next(s for s in range(self.slots) if s not in taken)
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                self.command(folder / SPEC),
                stdin=subprocess.PIPE,  # closes when this process ends: the cell then stops too
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(slot),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then asks the cells to stop
            )
        self.running[name] = Running(process, slot)
        self.states[name].started = time.monotonic()
        self._mark(name, "running", "")

    def spec(self, cell: Cell) -> dict[str, Any]:
        """What spec.json tells the cell's process."""
        overrides = dict(cell.overrides)
        if cell.teacher:
            teacher = self.plan.cells[cell.teacher]
            source = self._weights(teacher) or self.plan.folder(teacher)
            overrides["teacher.source"] = f"run:{source / RUN}"
        return {
            "study": self.plan.root.name,
            "variant": cell.variant,
            "seed": cell.seed,
            "address": cell.address,
            "content": cell.content,
            "base": cell.base,
            "overrides": overrides,
            "folder": str(self.plan.folder(cell)),
            "threads": self.threads,
            "teacher": cell.teacher,
            "eval": self.plan.eval,
            "size": cell.size,
        }

    def _environment(self, slot: int) -> dict[str, str]:
        env = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return env

    def _look(self) -> None:
        now = time.monotonic()
        for name, running in list(self.running.items()):
            cell = self.plan.cells[name]
            folder = self.plan.folder(cell)
            state = self.states[name]
            state.observe(read_json(folder / RUN / PROGRESS), now)
            code = running.process.poll()
            if code is None:
                continue
            del self.running[name]
            _close(running.process)
            state.ended = now
            if code == 0 and is_done(read_json(folder / RESULT), cell, self.plan.eval):
                self._mark(name, "done", "done")
            else:
                self._mark(name, "failed", f"failed (status {code})")

    def _mark(self, name: str, status: str, note: str) -> None:
        self.states[name].status, self.states[name].note = status, note
        if status == "done":
            self.again.remove(self.plan.cells[name])
            self.on_done(self.plan.cells[name])

    # -------------------------------------------------------------------------------------------- after

    def _stop(self) -> None:
        """Ask the running cells to stop, wait for their checkpoints, end those that do not."""
        self.display.say("Stopping: the running cells write a checkpoint.")
        for running in self.running.values():
            running.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + GRACE
        try:
            for running in self.running.values():
                running.process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            for running in self.running.values():
                running.process.kill()
        for name, running in self.running.items():
            running.process.wait()
            _close(running.process)
            self._mark(name, "waiting", "stopped")
        self.running.clear()

    def _outcome(self, interrupted: bool = False) -> Outcome:
        by = {s: [n for n, state in self.states.items() if state.status == s] for s in ("done", "failed", "blocked")}
        failed = {n: log_tail(self.plan.folder(self.plan.cells[n]) / LOG) for n in by["failed"]}
        return Outcome(by["done"], failed, by["blocked"], interrupted)


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def log_tail(path: Path, lines: int = TAIL) -> str:
    """The last lines of a log."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])
