import errno
import json
import os
import tarfile

import pytest

from distill.data import index
from distill.data.index import SUFFIX, build_index, open_index


@pytest.fixture
def tar(make, tmp_path):
    return make.shards(tmp_path, 1, 5) / "s-000.tar"


def test_spans_point_at_the_files(make, tar):
    found = build_index(str(tar))
    assert found.keys == [f"{n:05d}" for n in range(5)]
    data = tar.read_bytes()
    with tarfile.open(tar) as archive:
        for key, row in zip(found.keys, found.spans.tolist()):
            for suffix, (offset, size) in (("jpg", row[0:2]), ("json", row[2:4])):
                assert data[offset : offset + size] == archive.extractfile(f"{key}.{suffix}").read()
            assert row[4:] == [-1, 0]


def test_index_is_stored_beside_the_tar_and_read_again(tar, monkeypatch):
    first = open_index(str(tar))
    assert json.loads((tar.parent / (tar.name + SUFFIX)).read_text())["count"] == 5
    monkeypatch.setattr(index, "build_index", None)  # must not be called again
    again = open_index(str(tar))
    assert again.count == 5
    assert again.spans is None  # only the first line was read
    assert again.load().spans.tolist() == first.spans.tolist()


def test_index_is_rebuilt_when_the_tar_changes(make, tar):
    open_index(str(tar))
    make.tar(tar, make.files("new"))
    assert open_index(str(tar)).load().keys == ["new"]


def test_a_damaged_index_is_rebuilt(tar):
    open_index(str(tar))
    (tar.parent / (tar.name + SUFFIX)).write_text('{"format": 1, "si')
    assert open_index(str(tar)).count == 5


def test_read_only_folder_uses_the_cache(tar, own_cache, monkeypatch):
    real = index.write_atomic

    def refuse(path, text):
        if path.parent == tar.parent:
            raise OSError(errno.EROFS, "Read-only file system")
        real(path, text)

    monkeypatch.setattr(index, "write_atomic", refuse)
    found = open_index(str(tar))
    assert os.path.dirname(found.file) == str(own_cache / "everypatch" / "index")
    assert not (tar.parent / (tar.name + SUFFIX)).exists()
    monkeypatch.setattr(index, "build_index", None)
    assert open_index(str(tar)).load().count == 5


def test_nowhere_to_write_keeps_the_index_in_memory(tar, monkeypatch):
    def refuse(path, text):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(index, "write_atomic", refuse)
    found = open_index(str(tar))
    assert found.file is None
    assert len(found.keys) == 5


def test_truncated_tar_keeps_what_precedes(tar):
    whole = build_index(str(tar))
    offset, size = whole.spans[3, 0:2].tolist()
    with open(tar, "r+b") as stream:
        stream.truncate(offset + size // 2)
    found = build_index(str(tar))
    assert found.keys == ["00000", "00001", "00002"]
    assert found.broken == [("00003", "truncated tar")]


def test_truncated_between_files_is_noticed(tar):
    whole = build_index(str(tar))
    offset = int(whole.spans[3, 0]) - 512  # just before the header of the fourth sample
    with open(tar, "r+b") as stream:
        stream.truncate(offset)
    found = build_index(str(tar))
    assert found.count == 3
    assert found.broken[0][1].startswith("damaged tar")


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_not_a_tar(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    found = build_index(str(path))
    assert found.count == 0
    assert "not a plain tar" in found.broken[0][1]


def test_record_without_image_is_noted(make, tmp_path):
    tar = make.tar(tmp_path / "x.tar", [*make.files("a"), ("b.json", b"{}")])
    found = build_index(str(tar))
    assert (found.keys, found.broken) == (["a"], [("b", "no image")])


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(index.os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        index.write_atomic(tmp_path / "x.json", "{}")
    assert list(tmp_path.iterdir()) == []
