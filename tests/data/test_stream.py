import http.server
import tarfile
import threading
from functools import partial
from itertools import islice

import pytest

from distill.data.loader import build_loader
from distill.data.sample import Sample, SampleError
from distill.data.sources import open_shards
from distill.data.stream import StreamSource, check_shards_vs_workers, shuffled
from distill.errors import UserError

GRID = (2, 2)


def pipes(folder, shards):
    return StreamSource([f"pipe:cat {folder}/s-{n:03d}.tar" for n in range(shards)], 100)


def keys(records):
    return [record.key for record in records]


def test_records_of_a_pipe(make, tmp_path):
    source = pipes(make.shards(tmp_path, 1, 3), 1)
    found = list(source.records(source.shards[0]))
    assert keys(found) == ["00000", "00001", "00002"]
    assert found[2].image == make.image(2)
    assert found[2].captions["web"] == ["web 00002"]


def test_records_of_a_url(make, tmp_path):
    make.shards(tmp_path, 1, 3)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        source = open_shards(f"{base}/s-{{000..001}}.tar", epoch=10)
        there, missing = (list(source.records(shard)) for shard in source.shards)
        server.shutdown()
    assert keys(there) == ["00000", "00001", "00002"]
    assert len(missing) == 1
    assert isinstance(missing[0], SampleError)
    assert "shard ended early" in missing[0].reason


def test_truncated_shard_keeps_what_precedes(make, tmp_path):
    path = make.shards(tmp_path, 1, 4) / "s-000.tar"
    data = path.read_bytes()
    third = data.index(make.image(2))
    path.write_bytes(data[: third + 20])
    found = list(pipes(tmp_path, 1).records(f"pipe:cat {path}"))
    assert keys(found) == ["00000", "00001", "-"]
    assert "shard ended early (after 2 samples" in found[2].reason


def headers(path):
    """Where the headers of a tar's files begin."""
    with tarfile.open(path) as tar:
        return {member.name: member.offset for member in tar}


@pytest.mark.parametrize("through", ["cat", "gzip -c"])
def test_a_damaged_header_is_not_taken_for_the_end(make, tmp_path, through):
    path = make.shards(tmp_path, 1, 5) / "s-000.tar"
    data = bytearray(path.read_bytes())
    place = headers(path)["00002.jpg"]
    data[place + 148] ^= 7  # its checksum
    path.write_bytes(data)
    found = list(pipes(tmp_path, 1).records(f"pipe:{through} {path}"))
    assert keys(found) == ["00000", "00001", "-"]
    wanted = f"shard ended early (after 2 samples: damaged tar, what follows byte {place} is lost)"
    assert found[2].reason == wanted


def test_a_tar_without_its_end_is_said_to_be_cut(make, tmp_path):
    path = make.shards(tmp_path, 1, 3) / "s-000.tar"
    path.write_bytes(path.read_bytes()[: headers(path)["00002.jpg"]])
    found = list(pipes(tmp_path, 1).records(f"pipe:cat {path}"))
    assert keys(found) == ["00000", "00001", "-"]
    assert "damaged tar" in found[2].reason


def test_folders_of_metadata_are_passed_over(make, tmp_path):
    make.tar(tmp_path / "s-000.tar", [*make.files("__meta__/x"), *make.files("__a")])
    assert keys(pipes(tmp_path, 1).records(f"pipe:cat {tmp_path}/s-000.tar")) == ["__a"]


def test_a_local_shard_among_streams_may_have_a_colon(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make.tar(tmp_path / "a:b.tar", make.files("a"))
    assert keys(StreamSource(["a:b.tar"], 1).records("a:b.tar")) == ["a"]


def test_a_command_that_fails_is_reported(make, tmp_path):
    make.shards(tmp_path, 1, 2)
    shard = f"pipe:cat {tmp_path}/s-000.tar; exit 3"
    found = list(StreamSource([shard], 9).records(shard))
    assert keys(found) == ["00000", "00001", "-"]
    assert "exit 3" in found[-1].reason


def test_broken_records_are_errors_in_place(make, tmp_path):
    make.tar(tmp_path / "s-000.tar", [*make.files("a"), ("b.json", b"{}"), ("c.jpg", make.image()), ("c.json", b"{")])
    reasons = [
        getattr(record, "reason", "fine") for record in pipes(tmp_path, 1).records(f"pipe:cat {tmp_path}/s-000.tar")
    ]
    assert reasons[:2] == ["fine", "no image"]
    assert reasons[2].startswith("bad JSON")


def test_leaving_a_pipe_early_is_no_error(make, tmp_path, capfd):
    source = pipes(make.shards(tmp_path, 1, 50), 1)
    records = source.records(source.shards[0])
    assert next(records).key == "00000"
    records.close()
    assert capfd.readouterr().err == ""


def test_passes_reorder_shards_and_keep_every_sample(make, tmp_path):
    source = pipes(make.shards(tmp_path, 4, 2), 4)
    stream = source.endless(source.shards, seed=0, owner=0)
    passes = []
    for _ in range(4):
        passes.append(keys(iter(partial(next, stream), None)))
    assert all(sorted(found) == [f"{n:05d}" for n in range(8)] for found in passes)
    assert len({tuple(found) for found in passes}) > 1


def test_nothing_readable_is_an_error_not_a_hang(tmp_path):
    source = StreamSource([f"pipe:cat {tmp_path}/none.tar 2>/dev/null"], 5)
    with pytest.raises(UserError, match="No sample"):
        list(source.endless(source.shards, 0, 0))


def test_shuffle_buffer_mixes_and_loses_nothing():
    def endless():
        while True:
            yield from (Sample(str(n), "s", b"") for n in range(100))
            yield None

    assert keys(islice(shuffled(endless(), 0, 0, 0), 250)) == [str(n % 100) for n in range(250)]
    assert keys(islice(shuffled(endless(), 1, 0, 0), 250)) == [str(n % 100) for n in range(250)]
    first = keys(islice(shuffled(endless(), 30, 0, 0), 70))
    assert len(set(first)) == 70
    assert first != sorted(first, key=int)
    assert max(map(int, first[:20])) < 50  # at most the buffer ahead
    assert first == keys(islice(shuffled(endless(), 30, 0, 0), 70))
    assert first != keys(islice(shuffled(endless(), 30, 1, 0), 70))
    assert len(set(keys(islice(shuffled(endless(), 1000, 0, 0), 100)))) > 55  # a buffer larger than the source


def test_epoch_is_required():
    with pytest.raises(UserError, match=r"data.epoch is null"):
        open_shards("pipe:cat x.tar")


@pytest.mark.parametrize(("shards", "workers", "world"), [(4, 2, 2), (1, 0, 1), (9, 2, 4)])
def test_enough_shards(shards, workers, world):
    check_shards_vs_workers(shards, workers, world)


def test_fewer_shards_than_processes_are_refused_with_the_fix(make, tmp_path):
    check_shards_vs_workers(3, 2, 2, indexed=True)
    with pytest.raises(UserError, match=r"3 streamed shards for 4 .*lower data.workers to 1 or repack into at least 4"):
        check_shards_vs_workers(3, 2, 2)
    with pytest.raises(UserError, match=r"To fix it, repack into at least 4 shards"):
        check_shards_vs_workers(1, 2, 2)
    source = pipes(make.shards(tmp_path, 1, 3), 1)
    with pytest.raises(UserError, match="1 streamed shards for 2"):
        build_loader(source, make.config(workers=2), make.tokenizer, grid=GRID)


def run(make, source, start=0, rank=0, world=1, workers=0, steps=6, state=None):
    cfg = make.config(workers=workers, epoch=source.epoch)
    cfg.train.steps = steps
    return build_loader(source, cfg, make.tokenizer, grid=GRID, start_step=start, rank=rank, world=world, state=state)


def same(a, b):
    return len(a) == len(b) and all(
        bool((x.global_ == y.global_).all() and (x.tokens == y.tokens).all() and (x.mask == y.mask).all())
        for x, y in zip(a, b)
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 3, 4])
def test_resume_continues_exactly(make, tmp_path, workers, start):
    source = pipes(make.shards(tmp_path, 4, 9, broken=(5, 6, 20)), 4)
    whole = list(run(make, source, workers=workers))
    rest = list(run(make, source, start, workers=workers))
    assert same(rest, whole[start:])
    assert [[f.key for f in b.failures] for b in rest] == [[f.key for f in b.failures] for b in whole[start:]]


def test_ranks_read_different_shards(make, tmp_path):
    source = pipes(make.shards(tmp_path, 4, 8), 4)
    texts = []
    for rank in (0, 1):
        batches = list(run(make, source, rank=rank, world=2))
        assert {len(batch) for batch in batches} == {4}
        texts.append({bytes(row[:9].tolist()) for batch in batches for row in batch.tokens[:, 0]})
    assert not texts[0] & texts[1]
    assert all(len(found) == 16 for found in texts)  # 24 draws from 16 samples: more than one pass


def test_resume_with_other_counts_is_refused(make, tmp_path):
    source = pipes(make.shards(tmp_path, 4, 3), 4)
    state = run(make, source).state
    assert run(make, source, state=state).state == state
    with pytest.raises(UserError, match=r"workers 1 -> 2 since the checkpoint. A stream continues exactly only with"):
        run(make, source, workers=2, state=state)
    with pytest.raises(UserError, match="ranks 1 -> 2"):
        run(make, source, world=2, state=state)


def test_unreadable_samples_are_replaced_and_counted(make, tmp_path):
    source = pipes(make.shards(tmp_path, 1, 8, broken=(3, 4)), 1)
    batches = list(run(make, source, steps=2))
    assert {len(batch) for batch in batches} == {8}
    assert sorted(f.key for batch in batches for f in batch.failures) == ["00003", "00003", "00004", "00004"]
