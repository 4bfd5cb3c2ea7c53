import errno
from pathlib import Path

import pytest
import torch

from distill.errors import UserError
from distill.training import checkpoint


def test_keeps_the_newest_and_leaves_no_partial_files(tmp_path: Path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".pt"] == []
    assert [torch.load(p)["step"] for p in checkpoint.existing(tmp_path)] == [2, 3]


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(tmp_path: Path, monkeypatch):
    checkpoint.save(tmp_path, 1, {"w": torch.arange(3)}, keep=1)

    def full(content, file):
        file.write(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"No space left.*step_00000001.pt, is untouched.*--resume"):
        checkpoint.save(tmp_path, 2, {}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001.pt"]
    assert torch.load(checkpoint.existing(tmp_path)[0])["w"].tolist() == [0, 1, 2]


def test_a_real_device_without_space_is_reported(tmp_path: Path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "step_00000007.pt.partial").symlink_to(full)
    with pytest.raises(UserError, match=r"Could not write checkpoint .*there is no earlier one"):
        checkpoint.save(tmp_path, 7, {"w": torch.zeros(100_000)}, keep=1)
    assert checkpoint.existing(tmp_path) == []


def test_an_interrupted_write_is_never_taken_for_a_checkpoint(tmp_path: Path):
    (tmp_path / "step_00000005.pt.partial").write_bytes(b"half")
    assert checkpoint.existing(tmp_path) == []
