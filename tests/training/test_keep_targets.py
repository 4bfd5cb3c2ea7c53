"""Runs with kept targets: the same training, fewer passes of the teacher; filled by the run or before it.

Slow ones (`-m slow`) use processes: kill -9 with loader workers, and two ranks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.data.loader import build_loader
from distill.data.sources import open_source
from distill.errors import UserError
from distill.models.vision import VisionTower
from distill.study.cell import teacher_images
from distill.training.checkpoint import existing
from distill.training.fill import fill
from teachers.cache_store import Store

COUNT = 16  # images in the world, two batches
BASE = {"data.scenes.count": COUNT, "mask.ratio": 0.5, "teacher.mode": "frozen", "optim.warmup": 0.0}


@pytest.fixture
def keep(small_run, tmp_path, monkeypatch):
    """Recipe settings with a teacher of 16 px patches, a cache in the test's folder, and `keep.passes`.

    `passes`: images seen by the teacher's trunk, counted where it is built of two blocks (the students have one).
    """
    teacher = small_run("teacher", **{"train.steps": 1, "students.0.depth": 2}).folder
    passes: list[int] = []
    forward = VisionTower.forward

    def counted(self, images, *args, **kwargs):
        if self.depth == 2:
            passes.append(len(images))
        return forward(self, images, *args, **kwargs)

    monkeypatch.setattr(VisionTower, "forward", counted)

    def settings(**changes) -> dict:
        path = {"teacher.cache.path": str(tmp_path / "cache"), "teacher.cache.dtype": "fp32"}
        return BASE | {"teacher.source": f"run:{teacher}"} | path | changes

    settings.passes = passes
    return settings


def learned(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, heads and optimiser state of the newest checkpoint, flat."""
    content = torch.load(existing(folder / "checkpoints")[-1], weights_only=True)
    student = content["students"]["student"]
    state = content["optimizers"]["students"]["state"]
    return student["weights"] | student["heads"] | {f"{i}.{k}": v for i, s in state.items() for k, v in s.items()}


def identical(a: Path, b: Path) -> bool:
    one, other = learned(a), learned(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_runs_that_fill_and_that_read_are_the_run_without(small_run, keep):
    """One epoch: views are those of a run without a cache, so that all three must agree bit by bit."""
    steps = {"train.steps": 2}
    plain = small_run("plain", **keep(**steps, **{"teacher.cache.path": None})).folder
    assert keep.passes == [8, 8]
    filled = small_run("filled", **keep(**steps)).folder
    assert keep.passes == [8, 8, 8, 8]
    read = small_run("read", **keep(**steps)).folder
    assert keep.passes == [8, 8, 8, 8]  # the trunk never ran
    assert identical(plain, filled)
    assert identical(plain, read)
    forwards = [torch.load(existing(f / "checkpoints")[-1], weights_only=True)["teacher"]["state"]["forwards"]
                for f in (plain, filled, read)]  # fmt: skip
    assert forwards == [2, 2, 0]


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_teacher_sees_each_view_once(small_run, keep, epochs):
    folder = small_run("a", **keep(**{"train.steps": 5, "teacher.cache.epochs": epochs})).folder
    assert keep.passes == [8] * (2 * epochs)
    content = {"teacher.mode": "frozen", "train.steps": 5, "train.batch": 8, "train.accumulate": 1}
    content |= {"objective.patch.weight": 2.0, "objective.cls.weight": 1.0}
    assert teacher_images(content, folder) == 40  # what a study says of a run without a cache
    assert teacher_images(content | {"teacher.cache.path": "x"}, folder) == 2 * epochs * 8


@pytest.mark.parametrize("target", ["features", "prototypes"])
def test_later_epochs_train_as_if_the_teacher_had_seen_the_same_views(small_run, keep, monkeypatch, target):
    """Against a run whose cache never finds anything, so that the teacher sees the repeating views every time."""
    changes = {"train.steps": 5, "objective.patch.target": target}
    kept = small_run("kept", **keep(**changes)).folder
    assert len(keep.passes) == 2
    monkeypatch.setattr(Store, "read", lambda *_: None)
    asked = small_run("asked", **keep(**changes)).folder
    assert len(keep.passes) == 2 + 5
    assert identical(kept, asked)


def test_halves_change_the_targets_a_little(small_run, keep, rows):
    whole = small_run("whole", **keep(**{"train.steps": 1})).folder
    half = {"teacher.cache.dtype": "fp16", "teacher.cache.path": str(whole.parent / "halves"), "train.steps": 1}
    mine, theirs = (rows(f)[0]["student/patch"] for f in (whole, small_run("half", **keep(**half)).folder))
    assert mine == pytest.approx(theirs, rel=1e-3)
    sizes = [sum(f.stat().st_size for f in (whole.parent / n).glob("targets-*")) for n in ("cache", "halves")]
    assert sizes == [2 * 8 * (16 + 16 * 16) * 2, 8 * (16 + 16 * 16) * 2]  # CLS and 16 patches, 16 wide


def test_views_repeat_and_masks_do_not(build, keep):
    cfg, assembly, _ = build(**keep(**{"teacher.cache.epochs": 2, "train.steps": 8}))
    source = open_source(cfg.data)
    batches = list(build_loader(source, cfg, assembly.tokenizer, grid=(4, 4)))
    first, later, other = batches[0], batches[4], batches[2]  # epochs 0, 2 and 1
    assert np.array_equal(first.view, later.view)
    assert torch.equal(first.global_, later.global_)
    assert torch.equal(first.index, later.index)
    assert not torch.equal(first.mask, later.mask)
    assert not np.array_equal(first.view, other.view)
    assert sorted(row for batch in batches[:4] for row in batch.view[:, 0]) == list(range(2 * COUNT))
    cfg.teacher.cache.path = None  # without a cache nothing repeats, and the first epoch is the same
    plain = list(build_loader(source, cfg, assembly.tokenizer, grid=(4, 4)))
    assert torch.equal(plain[0].global_, first.global_)
    assert not torch.equal(plain[4].global_, later.global_)


def command(tmp_path: Path, overrides: dict[str, object], *flags: str, verb: str = "run") -> list[str]:
    words = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return [sys.executable, "-m", "distill", verb, "pretrain/scenes_tiny", *words, *flags]


def test_stopped_while_filling_and_resumed_is_bit_identical(tmp_path, small_run, keep, monkeypatch):
    """The process ends while it writes the rows of step 6; the last checkpoint is of step 3."""
    changes = keep(**{"train.steps": 10, "data.scenes.count": 64, "train.checkpoint_every": 3})
    whole = small_run("whole", **changes | {"teacher.cache.path": str(tmp_path / "other")}).folder
    write = Store.write

    def end(self, row, view, data):
        if self.present().sum() == 5 * 8 + 3:
            raise SystemExit("killed")
        write(self, row, view, data)

    monkeypatch.setattr(Store, "write", end)
    with pytest.raises(SystemExit):
        small_run("killed", **changes)
    assert existing(tmp_path / "killed" / "checkpoints")[-1].name == "step_00000003.pt"
    monkeypatch.setattr(Store, "write", write)
    keep.passes.clear()
    assert identical(whole, small_run("killed", resume=True, **changes).folder)
    assert keep.passes == [8] * 3  # steps 6, 7 and 8: those of 4 and 5 were kept, 9 and 10 are of the second epoch


@pytest.mark.slow
def test_killed_while_filling_with_loader_processes_and_resumed_is_bit_identical(tmp_path, small, small_run, keep):
    changes = keep(**{"train.steps": 12, "data.scenes.count": 64, "train.checkpoint_every": 3, "data.workers": 2})
    whole = small_run("whole", **changes | {"teacher.cache.path": str(tmp_path / "other")}).folder
    run = command(tmp_path, small(name="killed", **changes), "--runs", str(tmp_path))
    process = subprocess.Popen(run, stderr=subprocess.DEVNULL)
    end, target = time.monotonic() + 120, tmp_path / "killed" / "checkpoints" / "step_00000003.pt"
    while not target.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    keep.passes.clear()
    resumed = small_run("killed", resume=True, **changes).folder
    assert identical(whole, resumed)
    assert len(keep.passes) <= 5  # of the first epoch's eight batches, those before the kill were kept


def test_filling_first_leaves_nothing_for_the_run_to_ask(small, small_run, keep, tmp_path):
    changes = keep(**{"train.steps": 9, "teacher.cache.epochs": 2})
    filled = fill("pretrain/scenes_tiny", small(**changes))
    assert (filled.plan.rows, filled.computed, keep.passes) == (32, 32, [8] * 4)
    assert fill("pretrain/scenes_tiny", small(**changes)).computed == 0
    store = Store(tmp_path / "cache", 32, filled.plan.shape.bytes)
    os.truncate(tmp_path / "cache" / "records.bin", 20 * 80)  # as if it had been stopped in the third batch
    assert store.present().sum() == 20
    assert fill("pretrain/scenes_tiny", small(**changes)).computed == 12
    assert keep.passes == [8] * 6
    small_run("a", **changes)
    assert keep.passes == [8] * 6


def test_filling_first_makes_the_heads_that_the_run_makes(small, small_run, keep):
    """Fitted heads are made anew by the run, from the same images: its targets are those that were kept."""
    heads = {"teacher.heads.kind": "fitted", "teacher.heads.steps": 3}
    changes = keep(**heads, **{"train.steps": 3})
    assert fill("pretrain/scenes_tiny", small(**changes)).computed == COUNT
    assert keep.passes == [8] * (3 + 2)
    kept = small_run("kept", **changes).folder
    assert keep.passes == [8] * (3 + 2 + 3)  # the heads alone
    assert torch.load(existing(kept / "checkpoints")[-1], weights_only=True)["teacher"]["state"]["forwards"] == 0
    with pytest.raises(UserError, match=r"teacher: \w{32} there, \w{32} here"):
        small_run("other", **changes | {"teacher.heads.steps": 2})


@pytest.mark.slow
def test_two_ranks_fill_one_cache_and_read_it(small, small_run, keep, tmp_path):
    changes = keep(**{"train.steps": 4, "optim.lr": 5e-4})

    def passes_of_two_ranks(name: str) -> int:
        run = command(tmp_path, small(name=name, **changes, **{"train.devices": 2}), "--runs", str(tmp_path))
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(run, capture_output=True, text=True, env=one_thread, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
        saved = torch.load(existing(tmp_path / name / "checkpoints")[-1], weights_only=True)
        return saved["teacher"]["state"]["forwards"]

    assert passes_of_two_ranks("two") == 2  # of four steps
    store = Store(tmp_path / "cache", COUNT, (16 + 256) * 4)
    assert store.present().all()
    small_run("one", **changes)
    assert keep.passes == []  # another number of ranks meets the same views
    os.truncate(tmp_path / "cache" / "records.bin", (COUNT - 1) * 80)  # the last row is the second rank's
    assert passes_of_two_ranks("again") == 1  # the first rank took part in the pass that the other needed
    assert store.present().all()


def test_what_the_cache_is_of_is_compared(small_run, keep):
    small_run("a", **keep(**{"train.steps": 1}))
    with pytest.raises(UserError, match=r"holds other targets or targets of other views \(seed: 0 there, 1 here\)"):
        small_run("b", **keep(**{"train.steps": 1, "seed": 1}))
    with pytest.raises(UserError, match=r"epochs: 1 there, 2 here"):
        small_run("c", **keep(**{"train.steps": 1, "teacher.cache.epochs": 2}))
    other = small_run("other", **{"train.steps": 1, "students.0.depth": 2, "seed": 5}).folder
    with pytest.raises(UserError, match=r"teacher: \w{32} there, \w{32} here"):
        small_run("d", **keep(**{"train.steps": 1, "teacher.source": f"run:{other}"}))
    with pytest.raises(UserError, match=r"of sample \d+ it holds targets of another picture"):
        small_run("e", **keep(**{"train.steps": 1, "data.scenes.seed": 3}))


def test_a_cache_too_large_is_refused_first(small_run, keep, tmp_path):
    with pytest.raises(UserError, match=r"the targets take .* but teacher\.cache\.limit is 1e-07 GiB\. Raise it"):
        small_run("a", **keep(**{"teacher.cache.limit": 1e-7}))
    assert not (tmp_path / "a" / "config.yaml").exists()
    assert not (tmp_path / "cache").exists()
