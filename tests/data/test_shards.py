import os
import pickle

import numpy as np
import pytest

from distill.data.sample import SampleError, Source
from distill.data.shards import OPEN_FILES, ShardSource, expand_shards, is_remote
from distill.errors import UserError


def names(shards):
    return [os.path.basename(shard) for shard in shards]


def test_expand_globs_ranges_lists_folders_and_joins(make, tmp_path):
    make.shards(tmp_path, 3, 1)
    assert names(expand_shards(f"{tmp_path}/s-*.tar")) == ["s-000.tar", "s-001.tar", "s-002.tar"]
    assert names(expand_shards(f"{tmp_path}/s-{{001..002}}.tar")) == ["s-001.tar", "s-002.tar"]
    assert names(expand_shards(f"{tmp_path}/s-{{002,000}}.tar")) == ["s-002.tar", "s-000.tar"]
    assert names(expand_shards(str(tmp_path))) == ["s-000.tar", "s-001.tar", "s-002.tar"]
    assert names(expand_shards(f"{tmp_path}/s-002.tar::{tmp_path}/s-000.tar")) == ["s-002.tar", "s-000.tar"]


def test_what_lies_beside_shards_is_no_shard(make, tmp_path):
    make.shards(tmp_path, 2, 2)
    (tmp_path / "s.manifest.jsonl").touch()
    first = ShardSource(expand_shards(f"{tmp_path}/*"))
    assert len(list(tmp_path.glob("*.index.json"))) == 2
    again = ShardSource(expand_shards(f"{tmp_path}/s*"))
    assert (again.identity(), again.failures) == (first.identity(), [])
    assert len(list(tmp_path.iterdir())) == 5


def test_expand_urls_and_pipes():
    found = expand_shards("pipe:cat a-{00..01}.tar :: https://x.org/b-{7..8}.tar")
    assert found == ["pipe:cat a-00.tar", "pipe:cat a-01.tar", "https://x.org/b-7.tar", "https://x.org/b-8.tar"]
    assert all(map(is_remote, found))
    assert not is_remote("http.tar")


def test_nothing_matches_says_what_was_looked_for_and_where(make, tmp_path):
    make.shards(tmp_path, 2, 1)
    with pytest.raises(UserError, match=r"No shard matches '.*t-\*.tar'.* has 2 .tar files \(s-000.tar, s-001.tar\)"):
        expand_shards(f"{tmp_path}/t-*.tar")
    with pytest.raises(UserError, match=r"there is no folder .*/nowhere"):
        expand_shards(f"{tmp_path}/nowhere/s-{{000..001}}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"0 entries and no \.tar file"):
        expand_shards(str(tmp_path / "empty"))


def test_bad_patterns(tmp_path):
    with pytest.raises(UserError, match="empty name"):
        expand_shards("a.tar::")
    with pytest.raises(UserError, match="braces do not match"):
        expand_shards("a-{000..001.tar")
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(UserError, match="compressed"):
        expand_shards(str(tmp_path / "a.tar.gz"))


def test_samples_by_index(make, tmp_path):
    source = ShardSource(expand_shards(str(make.shards(tmp_path, 3, 4))))
    assert isinstance(source, Source)
    assert len(source) == 12
    for index in (0, 3, 4, 11):
        sample = source[index]
        assert sample.key == f"{index:05d}"
        assert sample.shard.endswith(f"s-{index // 4:03d}.tar")
        assert sample.image == make.image(index)
        assert sample.captions["synthetic"] == [f"one {index:05d}", f"two {index:05d}"]
        assert source.captions(index) == sample.captions
    with pytest.raises(IndexError):
        source[12]
    with pytest.raises(IndexError):
        source[-1]


def test_masks_only_where_asked_for(make, tmp_path):
    import io

    from PIL import Image

    mask = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG")
    path = make.tar(tmp_path / "m.tar", [*make.files("a"), ("a.mask.png", out.getvalue()), *make.files("b")])
    assert ShardSource([str(path)])[0].mask is None
    source = ShardSource([str(path)], masks=True)
    assert np.array_equal(source[0].mask, mask)
    assert source[1].mask is None


def test_goes_to_other_processes(make, tmp_path):
    source = ShardSource(expand_shards(str(make.shards(tmp_path, 2, 2))))
    source[3]  # opens a file
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3].image == source[3].image
    child = os.fork()
    if child == 0:  # an inherited handle must not disturb the parent's reading
        ok = all(source[i].key == f"{i:05d}" for i in (3, 0, 1, 2))
        os._exit(0 if ok else 1)
    assert source[3].key == "00003"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_many_shards_with_few_open_files(make, tmp_path):
    source = ShardSource(expand_shards(str(make.shards(tmp_path, OPEN_FILES + 3, 1))))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for index in [*range(len(source)), 0]:
        assert source[index].key == f"{index:05d}"
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= OPEN_FILES


def test_damage_is_listed_and_the_rest_is_used(make, tmp_path):
    make.shards(tmp_path, 2, 3)
    path = tmp_path / "s-001.tar"
    path.write_bytes(path.read_bytes()[:700])
    source = ShardSource(expand_shards(str(tmp_path)))
    assert len(source) == 3
    assert [(f.shard, f.key, f.reason) for f in source.failures] == [(str(path), "00003", "truncated tar")]


def test_no_sample_at_all(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 shards hold no image. First problem: .*x.tar"):
        ShardSource([str(tmp_path / "x.tar")])


def test_the_first_records_of_each_shard_without_an_index_on_disk(make, tmp_path):
    source = ShardSource(expand_shards(str(make.shards(tmp_path, 2, 5))), first=2)
    assert [source.name(n) for n in range(4)] == [
        (str(tmp_path / f"s-{shard:03d}.tar"), f"{shard * 5 + n:05d}") for shard in range(2) for n in range(2)
    ]
    assert len(source) == 4
    assert source[3].image == make.image(6)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tar", ".tar"]


def test_shard_that_vanishes_is_a_sample_error(make, tmp_path):
    source = ShardSource(expand_shards(str(make.shards(tmp_path, 2, 1))))
    (tmp_path / "s-001.tar").unlink()
    assert source[0].key == "00000"
    with pytest.raises(SampleError, match=r"s-001.tar: 00001: cannot read \(No such file"):
        source[1]


def test_index_that_vanishes_is_built_again(make, tmp_path):
    source = ShardSource(expand_shards(str(make.shards(tmp_path, 1, 2))))
    (tmp_path / "s-000.tar.index.json").unlink()
    assert source[1].key == "00001"


def test_bad_json_names_shard_and_key(make, tmp_path):
    path = make.tar(tmp_path / "x.tar", [("é.x.jpg", make.image()), ("é.x.json", b'{"web": ')])
    with pytest.raises(SampleError, match=r"x.tar: é.x: bad JSON"):
        ShardSource([str(path)])[0]
