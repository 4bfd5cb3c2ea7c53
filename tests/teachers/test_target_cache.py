"""Kept targets: what comes back, what is refused, and what a killed process leaves."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.views.batch import VIEW
from teachers import cache_plan, cache_store
from teachers.cache_plan import CachePlan
from teachers.cache_store import open_store
from teachers.target_cache import RowShape, TargetCache
from teachers.targets import Embedded

SHAPE = RowShape(patches=3, cls_width=4, patch_width=2, dtype="fp32")


def views(rows: list[int], **changes: int) -> np.ndarray:
    """Views of made-up samples 100 + row."""
    made = np.array([[row, 100 + row, 7, 1, 2, 3, 4, row % 2] for row in rows], dtype=np.int64)
    for name, value in changes.items():
        made[:, VIEW.index(name)] = value
    return made


def said(rows: list[int], scale: float = 1.0) -> Embedded:
    """What a teacher might say: other numbers for every row."""
    base = torch.tensor(rows, dtype=torch.float32)[:, None] + torch.linspace(0.1, 0.9, 10)
    base = base * scale
    return Embedded(base[:, :4], base[:, 4:].unflatten(1, (3, 2)))


def never() -> Embedded:
    raise AssertionError("the teacher was asked")


@pytest.fixture
def make(tmp_path):
    """`make(**marks)`: the cache in the test's folder, opened anew."""

    def build(rows: int = 12, shape: RowShape = SHAPE, **marks) -> TargetCache:
        return TargetCache(open_store(str(tmp_path / "kept"), marks, rows, shape.bytes), shape)

    return build


def serve(cache: TargetCache, rows: list[int], compute=never, **changes: int) -> Embedded:
    return cache.serve(views(rows, **changes), torch.device("cpu"), compute)


@pytest.mark.parametrize("rows_a_file", [1, 5, 100])
def test_what_was_said_comes_back_bit_by_bit_without_asking_again(make, monkeypatch, rows_a_file):
    monkeypatch.setattr(cache_store, "FILE_BYTES", rows_a_file * SHAPE.bytes)
    for rows in ([3, 0, 7], [11, 4]):
        first = serve(make(), rows, lambda rows=rows: said(rows))
        assert torch.equal(first.patches, said(rows).patches)
    again = serve(make(), [4, 0, 3, 11])  # another process, another batch
    assert torch.equal(again.cls, said([4, 0, 3, 11]).cls)
    assert torch.equal(again.patches, said([4, 0, 3, 11]).patches)
    assert make().store.present().tolist() == [row in (0, 3, 4, 7, 11) for row in range(12)]


@settings(max_examples=25)
@given(st.lists(st.integers(0, 19), min_size=1, max_size=30), st.integers(1, 6))
def test_any_order_of_batches_gives_what_the_teacher_says(tmp_path_factory, order, size):
    folder = str(tmp_path_factory.mktemp("kept"))
    cache = TargetCache(open_store(folder, {}, 20, SHAPE.bytes), SHAPE)
    asked = 0
    seen: set[int] = set()
    for start in range(0, len(order), size):
        rows = order[start : start + size]

        def compute(rows=rows) -> Embedded:
            nonlocal asked
            asked += 1
            return said(rows)

        before = asked
        assert torch.equal(serve(cache, rows, compute).patches, said(rows).patches)
        assert (asked > before) == (not set(rows) <= seen)
        seen |= set(rows)


def test_halves_are_rounded_in_the_first_pass_too(make):
    shape = RowShape(3, 4, 2, "fp16")
    first = serve(make(shape=shape), [2, 5], lambda: said([2, 5]))
    assert torch.equal(first.cls, said([2, 5]).cls.half().float())
    assert not torch.equal(first.cls, said([2, 5]).cls)
    assert torch.equal(serve(make(shape=shape), [5]).patches, first.patches[1:])
    with pytest.raises(UserError, match=r"dtype=fp16 cannot hold a feature of 1\.1e\+06: set it to fp32"):
        serve(make(shape=shape), [1], lambda: said([100], scale=10900))


@pytest.mark.parametrize(("cls_width", "patch_width"), [(None, 2), (4, None)])
def test_a_loss_that_is_off_keeps_nothing(make, cls_width, patch_width):
    shape = RowShape(3, cls_width, patch_width, "fp32")
    whole = said([1])
    given = Embedded(whole.cls if cls_width else None, whole.patches if patch_width else None)
    serve(make(shape=shape), [1], lambda: given)
    back = serve(make(shape=shape), [1])
    for mine, theirs in ((back.cls, given.cls), (back.patches, given.patches)):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"left": 0}, r"sample 103 it holds targets of the crop \[1, 2, 3, 4, 1\], but the view is \[0, 2, 3, 4, 1\]"),
        ({"flip": 0}, r"but the view is \[1, 2, 3, 4, 0\] \(left, top, right, bottom, flip\)\. Give another folder"),
        ({"picture": 8}, r"sample 103 it holds targets of another picture\. Restore the data"),
    ],
)
def test_another_crop_flip_or_picture_is_refused(make, changes, message):
    serve(make(), [3], lambda: said([3]))
    with pytest.raises(UserError, match=message):
        serve(make(), [3], never, **changes)


def test_where_another_sample_stepped_in_the_teacher_is_asked_and_nothing_overwritten(make):
    serve(make(), [3, 4], lambda: said([3, 4]))
    other = serve(make(), [3], lambda: said([9]), index=999)
    assert torch.equal(other.cls, said([9]).cls)
    assert torch.equal(serve(make(), [3]).cls, said([3]).cls)


@pytest.mark.parametrize("damage", ["torn row", "torn record", "short file", "flipped bit", "record alone"])
def test_what_a_kill_or_a_bad_disk_leaves_is_a_missing_row(make, tmp_path, damage):
    serve(make(), [3, 4], lambda: said([3, 4]))
    targets, records = tmp_path / "kept" / "targets-00000.bin", tmp_path / "kept" / "records.bin"
    data, table = bytearray(targets.read_bytes()), bytearray(records.read_bytes())
    at = 4 * SHAPE.bytes
    if damage == "torn row":
        data[at + SHAPE.bytes // 2 :] = bytes(SHAPE.bytes - SHAPE.bytes // 2)
    elif damage == "torn record":
        del table[-8:]
    elif damage == "short file":
        del data[-1:]
    elif damage == "flipped bit":
        data[at + 5] ^= 4
    else:
        del data[at:]
    targets.write_bytes(data)
    records.write_bytes(table)
    assert torch.equal(serve(make(), [3]).cls, said([3]).cls)
    with pytest.raises(AssertionError, match="the teacher was asked"):
        serve(make(), [3, 4])
    serve(make(), [3, 4], lambda: said([3, 4]))
    assert torch.equal(serve(make(), [4]).patches, said([4]).patches)


def test_a_cache_of_something_else_is_refused_with_the_difference(make, tmp_path):
    make(seed=0, epochs=2)
    make(epochs=2, seed=0)
    with pytest.raises(UserError, match=r"other views \(seed: 0 there, 1 here\)\. Give another folder"):
        make(seed=1, epochs=2)
    with pytest.raises(UserError, match=r"rows: 12 there, 13 here"):
        make(seed=0, epochs=2, rows=13)
    (tmp_path / "kept" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged\. Remove the folder"):
        make(seed=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match="not empty and no cache: give a folder of its own"):
        open_store(str(tmp_path / "mine"), {}, 1, 8)
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]
    with pytest.raises(UserError, match=r"thesis\.tex: .*Give a folder that can be written"):
        open_store(str(tmp_path / "mine" / "thesis.tex"), {}, 1, 8)


def test_a_full_disk_is_one_sentence(make, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    cache = make()
    monkeypatch.setattr(cache_store.os, "pwrite", full)
    with pytest.raises(UserError, match=r"No space left on device; .* GiB free.*what is there stays good.*--resume"):
        serve(cache, [1], lambda: said([1]))


def test_the_plan_counts_rows_used_and_refuses_what_does_not_fit(tmp_path, monkeypatch):
    def plan(**changes) -> CachePlan:
        values = {"path": str(tmp_path / "kept"), "epochs": 2, "samples": 50, "epoch_size": 40, "seen": 400}
        return CachePlan(**values | {"shape": RowShape(256, 256, 256, "fp16"), "limit": 1.0} | changes)

    row = (256 + 256 * 256) * 2 + 80
    assert (plan().rows, plan().used, plan().bytes) == (80, 80, 80 * row)
    assert (plan(seen=30).used, plan(seen=30).bytes) == (30, 30 * row)
    assert "2 x 40 views of CLS 256 + 256 patches x 256 in fp16 = 10.0 MiB" in plan().line()
    assert "the teacher sees 20% of the run's images" in plan().line()
    assert plan().problem() is None
    assert "take 10.0 MiB, but teacher.cache.limit is 0.001 GiB. Raise it." in plan(limit=0.001).problem()
    monkeypatch.setattr(cache_plan, "free_bytes", lambda path: 5 * 2**20)
    assert "still to be kept take 10.0 MiB, but" in plan().problem()
    assert "5.0 MiB free" in plan().problem()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "targets-00000.bin").write_bytes(bytes(6 * 2**20))  # most of it is there already
    assert plan().problem() is None
    assert not (tmp_path / "nowhere").exists()
    assert cache_plan.free_bytes(str(tmp_path / "nowhere" / "deep")) > 0
