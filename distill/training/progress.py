"""Progress for a person (a bar, or plain lines without a terminal) and for other processes (progress.json)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY = 20.0  # seconds between lines without a terminal
FILE_EVERY = 1.0  # seconds between writes of progress.json


class TrainingProgress:
    """Shows step, rate, time left, loss and the share of time spent waiting for data."""

    def __init__(self, folder: Path, name: str, start: int, steps: int, console: Console | None = None):
        self.folder, self.name, self.start, self.steps = folder, name, start, steps
        self.console = console or Console(stderr=True)
        self.began = time.monotonic()
        self.images = 0
        self.waited = 0.0
        self._filed = self._said = 0.0
        self.bar = self._bar() if self.console.is_terminal else None

    def update(self, step: int, images: int, waited: float, loss: float | None) -> None:
        """After a step: images it used and seconds it waited for data. `loss` is None where it was not read."""
        self.images += images
        self.waited += waited
        now = time.monotonic()
        if self.bar is not None:
            fields: dict[str, Any] = {"rate": f"{self.rate():.0f} images/s", "wait": f"data {self.data_wait():.0%}"}
            if loss is not None:
                fields["loss"] = f"loss {loss:.3f}"
            self.bar.update(self.task, completed=step, **fields)
        elif now - self._said > PLAIN_EVERY:
            self._said = now
            print(self.line(step), file=sys.stderr, flush=True)
        if now - self._filed > FILE_EVERY or step == self.steps:
            self._filed = now
            self._write(step, loss)

    def rate(self) -> float:
        """Images per second since the start or the resume."""
        return self.images / max(1e-9, time.monotonic() - self.began)

    def data_wait(self) -> float:
        """Share of the time spent waiting for data."""
        return self.waited / max(1e-9, time.monotonic() - self.began)

    def line(self, step: int) -> str:
        elapsed = time.monotonic() - self.began
        left = elapsed / max(1, step - self.start) * (self.steps - step)
        return (
            f"{self.name}: step {step}/{self.steps}, {self.rate():.0f} images/s, "
            f"{left / 60:.1f} min left, data wait {self.data_wait():.0%}"
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _bar(self) -> Progress:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[wait]}"),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        bar.start()
        self.task = bar.add_task(self.name, total=self.steps, completed=self.start, rate="", wait="", loss="")
        return bar

    def _write(self, step: int, loss: float | None) -> None:
        state: dict[str, Any] = {
            "step": step,
            "steps": self.steps,
            "images_per_s": self.rate(),
            "data_wait": self.data_wait(),
            "loss": loss,
            "seconds": time.monotonic() - self.began,
        }
        partial = self.folder / "progress.json.partial"
        with contextlib.suppress(OSError):  # a full disk: what is only looked at must not end a run
            partial.write_text(json.dumps(state))
            os.replace(partial, self.folder / "progress.json")
