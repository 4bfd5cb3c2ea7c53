"""What a step costs as it grows: time and memory against batch, patches, prototypes and number of students.

The steps are those of pretrain/scenes_tiny with one thing changed at a time, on one CPU thread; students are counted
beside one co-trained teacher. A row gives how well a straight line explains each curve (1: exactly). All should be
straight but that of the patches, where attention adds a square.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.bench import ours
from distill.bench.measure import interleave, peak_memory, use_threads
from distill.bench.rows import Row, plain

BASE: dict[str, Any] = {"train.accelerator": "cpu", "train.precision": "fp32"}
COTRAINED = {"teacher.mode": "cotrained", "teacher.arch": "tiny/8", "teacher.depth": 4}
AXES: dict[str, dict[int, dict[str, Any]]] = {  # axis: {value: what it changes}
    "batch": {n: {"train.batch": n} for n in (8, 16, 32, 64)},
    "patches": {n * n: {"views.global_size": 8 * n, "vision.position_grid": n} for n in (4, 8, 11, 16)},
    "prototypes": {n: {"heads.prototypes": n} for n in (2048, 8192, 16384, 32768)},
    "students": {
        n: COTRAINED | {"students": [{"name": f"student{i}", "arch": "tiny/8", "depth": 4} for i in range(n)]}
        for n in (1, 2, 3, 4)
    },
}
QUICK = {"train.batch": 2, "heads.hidden": 8, "heads.bottleneck": 4}
TIME, MEMORY, LINE = "s of CPU a step", "MiB at the peak", "share explained by a line"


def prepare(axis: str, value: int, quick: bool) -> Callable[[], Any]:
    """A call that takes one step at `value` on `axis`."""
    changes = BASE | (QUICK if quick else {}) | AXES[axis][value]
    cfg = ours.configure("pretrain/scenes_tiny", changes)
    state = ours.start(cfg)
    vocabulary = state.distiller.student(cfg.students[0].name).model.tokenizer.vocabulary
    batch = ours.fake_batch(cfg, vocabulary)
    return lambda: ours.one_step(state, batch)


def two_steps(axis: str, value: int, quick: bool) -> Callable[[], Any]:
    """A call that takes two steps, so that gradients and optimiser state are counted: no step comes before it.

    What a step frees stays with the process, and a later one would be measured above that.
    """
    step = prepare(axis, value, quick)
    return lambda: (step(), step())


def measure(quick: bool) -> list[Row]:
    rows = []
    for axis, values in AXES.items():
        points = list(values)[:2] if quick else list(values)
        calls = {v: prepare(axis, v, quick) for v in points}
        with use_threads(1):
            time = interleave(calls, rounds=1 if quick else 5)
        if quick:
            memory = [peak_memory(calls.__getitem__, v, fresh=False) for v in points]
        else:
            memory = [peak_memory(two_steps, axis, v, quick) for v in points]
        costs = {TIME: [time[v].cpu for v in points], MEMORY: memory}
        for unit, found in costs.items():
            rows += [plain(f"{axis} {v}", y, unit) for v, y in zip(points, found)]
            rows.append(plain(f"{axis}, all, {unit}", straightness(points, found), LINE))
    return rows


def straightness(x: Sequence[float], y: Sequence[float]) -> float:
    """The share of y's variance that the best straight line explains, 0 to 1; 1 when y does not vary."""
    total = float(np.var(y))
    if total == 0:
        return 1.0
    return 1 - float(np.mean((np.asarray(y) - np.polyval(np.polyfit(x, y, 1), x)) ** 2)) / total


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The curves as a picture: a column an axis, time above memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(2, len(AXES), squeeze=False)
    for column, axis in enumerate(AXES):
        for panel, unit in zip(panels[:, column], (TIME, MEMORY)):
            found = [r for r in rows if r["unit"] == unit and r["what"].split()[0] == axis]
            x, y = [float(r["what"].split()[1]) for r in found], [r["ours"] for r in found]
            panel.plot(x, y, "o-", color="#1d6fa5", linewidth=1.4, markersize=4)
            panel.plot(x, np.polyval(np.polyfit(x, y, 1), x), "--", color="#9ca3af", linewidth=1)
            panel.set_ylim(bottom=0)
            panel.set_xlabel(axis)
            panel.spines[["top", "right"]].set_visible(False)
    for panel, unit in zip(panels[:, 0], (TIME, MEMORY)):
        panel.set_ylabel(unit)
    figure.savefig(path, dpi=110)
