import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.data.loader import build_loader
from distill.data.order import CROPS, Order, keyed_rng
from distill.data.sample import Sample
from distill.data.shards import ShardSource, expand_shards
from distill.errors import UserError
from distill.views.crops import draw_crops

GRID = (4, 4)


@pytest.fixture
def source(make, tmp_path):
    """30 samples in 3 shards, of which number 4 and 17 cannot be decoded."""
    return ShardSource(expand_shards(str(make.shards(tmp_path, 3, 10, broken=(4, 17)))))


def load(make, source, *, workers=0, start=0, rank=0, world=1, cfg=None, state=None):
    cfg = cfg or make.config()
    cfg.data.workers = workers
    return build_loader(source, cfg, make.tokenizer, grid=GRID, start_step=start, rank=rank, world=world, state=state)


def equal(a, b):
    """Whether two batches are the same bit by bit, failures included."""
    tensors = all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in ("global_", "local", "mask", "tokens", "valid", "index")
    )
    return tensors and a.cut == b.cut and [f.args for f in a.failures] == [f.args for f in b.failures]


def test_shapes_and_length(make, source):
    cfg = make.config()
    cfg.train.accumulate, cfg.train.steps = 2, 3
    loader = load(make, source, cfg=cfg)
    batches = list(loader)
    assert len(loader) == len(batches) == 6
    batch = batches[0]
    assert batch.global_.shape == (4, 3, 32, 32)
    assert batch.local.shape == (4, 2, 3, 16, 16)
    assert batch.mask.shape == (4, 16)
    assert batch.mask.sum(1).tolist() == [12] * 4
    assert batch.tokens.shape == batch.valid.shape == (4, 2, 12)
    assert batch.global_.dtype == batch.local.dtype == torch.uint8
    assert batch.tokens.dtype == batch.index.dtype == torch.int64


def test_the_order_is_that_of_order(make, source):
    cfg = make.config()
    batches = list(load(make, source, cfg=cfg))
    order = Order(30, cfg.seed, cfg.data.shuffle, None)
    expected = [order.index(*order.split(number)) for number in range(32)]
    drawn = torch.cat([batch.index for batch in batches]).tolist()
    for number, (index, wanted) in enumerate(zip(drawn, expected)):
        follower = next(i for i in expected[number:] if i not in (4, 17))
        assert index == (wanted if wanted not in (4, 17) else follower)
    assert sum(wanted in (4, 17) for wanted in expected) >= 2


def test_a_view_says_what_it_is(make, source):
    """Row, sample, checksum of the file's bytes, crop and flip, as drawn; rows are those of places, not of samples."""
    cfg = make.config()
    cfg.teacher.cache.path, cfg.teacher.cache.epochs, cfg.train.steps = "anywhere", 1, 8
    views = np.concatenate([batch.view for batch in load(make, source, cfg=cfg)])
    assert views[:, 0].tolist() == [number % 30 for number in range(64)]
    assert np.array_equal(views[:30], views[30:60])
    for view in views[:30]:
        assert view[2] == zlib.crc32(source[int(view[1])].image)
        crops = draw_crops((24, 32), cfg.views, keyed_rng(CROPS, cfg.seed, 0, int(view[0])))
        assert view[3:].tolist() == [*crops.boxes[0], crops.flips[0]]
    assert {4, 17} & set(views[:, 1].tolist()) == set()  # those that cannot be decoded are replaced alike each time


def test_captions_belong_to_their_image(make, source):
    for batch in load(make, source):
        for index, (first, second) in zip(batch.index.tolist(), batch.tokens.tolist()):
            assert bytes(first[:9]).decode() == f"web {index:05d}"
            assert bytes(second).rstrip(b"\0").decode().split()[-1] == f"{index:05d}"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_for_any_number_of_workers(make, source, workers):
    alone, many = list(load(make, source)), list(load(make, source, workers=workers))
    assert len(alone) == len(many) == 4
    assert all(equal(a, b) for a, b in zip(alone, many))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_share_one_batch(make, source, accumulate):
    cfg = make.config()
    cfg.train.accumulate = accumulate
    alone = list(load(make, source, cfg=cfg))
    parts = [list(load(make, source, rank=rank, world=2, cfg=cfg)) for rank in (0, 1)]
    assert len(alone) == 4 * accumulate
    for whole, *halves in zip(alone, *parts):
        for name in ("global_", "local", "mask", "tokens", "valid", "index"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))
        assert [f.args for f in whole.failures] == [f.args for half in halves for f in half.failures]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_continues_exactly(make, source, workers):
    whole = list(load(make, source, workers=workers))
    rest = list(load(make, source, workers=workers, start=3, state=load(make, source, world=2).state))
    assert len(rest) == 1
    assert equal(rest[0], whole[3])


def test_accumulation_only_cuts_the_batch(make, source):
    whole = list(load(make, source))
    cfg = make.config()
    cfg.train.accumulate = 2
    halves = list(load(make, source, cfg=cfg))
    assert torch.equal(whole[1].global_, torch.cat([halves[2].global_, halves[3].global_]))


def test_seed_and_epoch_change_the_views(make, source):
    cfg = make.config(shuffle=0)
    cfg.train.batch, cfg.train.steps = 30, 2
    first, second = list(load(make, source, cfg=cfg))
    assert torch.equal(first.index, second.index)  # the stored order, twice
    assert not torch.equal(first.mask, second.mask)
    assert not torch.equal(first.global_, second.global_)
    assert not torch.equal(first.tokens, second.tokens)  # another text
    cfg.seed = 1
    assert not torch.equal(next(iter(load(make, source, cfg=cfg))).global_, first.global_)


def test_failures_name_shard_and_key(make, source):
    batches = list(load(make, source))
    found = {(os.path.basename(f.shard), f.key) for batch in batches for f in batch.failures}
    assert found == {("s-000.tar", "00004"), ("s-001.tar", "00017")}
    assert all("corrupt image" in f.reason for batch in batches for f in batch.failures)


def test_a_failure_changes_nobody_else(make, tmp_path):
    views = []
    for broken in ((), (4,)):
        folder = tmp_path / str(len(broken))
        folder.mkdir()
        source = ShardSource(expand_shards(str(make.shards(folder, 3, 10, broken=broken))))
        views.append([row for batch in load(make, source) for row in batch.global_])
    changed = [number for number, (a, b) in enumerate(zip(*views)) if not torch.equal(a, b)]
    order = Order(30, 0, 16)
    assert changed == [number for number in range(32) if order.index(*order.split(number)) == 4]


def without(source, field, lacking):
    """`source`, whose samples numbered in `lacking` have no such caption field."""

    class Partly:
        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            sample = source[index]
            there = {k: texts for k, texts in sample.captions.items() if k != field or index not in lacking}
            return replace(sample, captions=there)

    return Partly()


def test_one_sample_without_a_caption_field_is_skipped_and_named(make, source):
    first = Order(30, 0, 16).index(0, 0)  # even the very first
    batches = list(load(make, without(source, "web", {first})))
    found = {(f.key, f.reason) for batch in batches for f in batch.failures if "corrupt" not in f.reason}
    assert found == {(f"{first:05d}", "no caption field 'web' (fields found: detailed, synthetic)")}
    assert first not in torch.cat([batch.index for batch in batches]).tolist()


@pytest.mark.parametrize("captions", ["none", "some"])
def test_without_contrast_no_caption_is_drawn(make, source, captions):
    """Images, crops, masks and order are those of the same run with captions; tokens are all padding."""
    cfg = make.config()
    expected = list(load(make, source, cfg=cfg))
    cfg.objective.contrastive.weight = 0
    lacking = without(source, "web", range(30))
    if captions == "none":
        lacking = without(without(lacking, "synthetic", range(30)), "detailed", range(30))
    for batch, other in zip(load(make, lacking, cfg=cfg), expected):
        for name in ("global_", "local", "mask", "index"):
            assert torch.equal(getattr(batch, name), getattr(other, name))
        assert [f.args for f in batch.failures] == [f.args for f in other.failures]
        assert batch.tokens.shape == other.tokens.shape
        assert not batch.valid.any() and not batch.tokens.any() and batch.cut == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_caption_field_is_one_clean_line(make, source, workers):
    cfg = make.config()
    cfg.captions.cls1 = ["alt"]
    with pytest.raises(UserError, match=r"s-00\d.tar: 000\d\d: no caption field 'alt'. Fields found") as caught:
        list(load(make, source, workers=workers, cfg=cfg))
    assert "\n" not in str(caught.value)


def test_nothing_readable_is_an_error_not_a_hang(make, tmp_path):
    source = ShardSource(expand_shards(str(make.shards(tmp_path, 1, 3, broken=(0, 1, 2)))))
    with pytest.raises(UserError, match=r"100 samples in a row could not be used. First: .*corrupt image"):
        list(load(make, source))


def test_long_captions_are_cut_and_counted(make, source):
    cfg = make.config()
    cfg.text.context = 8
    batch = next(iter(load(make, source, cfg=cfg)))
    assert batch.tokens.shape[-1] == 8
    assert batch.cut == 16  # every text has nine letters or more


def test_a_batch_that_does_not_divide_is_refused(make, source):
    cfg = make.config()
    cfg.train.batch = 10
    with pytest.raises(UserError, match=r"train.batch is 10.*multiples of 4, for example 8"):
        load(make, source, cfg=cfg, world=4)


def test_other_data_than_the_checkpoint_s_is_refused(make, source):
    with pytest.raises(UserError, match=r"samples 31 -> 30 since the checkpoint. The order of samples depends on"):
        load(make, source, state={"kind": "indexed", "samples": 31})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [(None, "seed", 5), ("train", "batch", 16), ("data", "shuffle", 3), ("data", "epoch", 8)],
)
def test_another_order_than_the_checkpoint_s_is_refused(make, source, section, key, value):
    state = load(make, source).state
    cfg = make.config()
    setattr(cfg if section is None else getattr(cfg, section), key, value)
    name = key if section is None else f"{section}.{key}"
    with pytest.raises(UserError, match=rf"{name} \w+ -> {value} since the checkpoint"):
        load(make, source, cfg=cfg, state=state)
    known = {k: v for k, v in state.items() if k in ("kind", "samples", "decoder")}  # of a checkpoint before these
    load(make, source, cfg=cfg, state=known)


def test_other_shards_of_the_same_size_are_refused_and_a_moved_folder_is_not(make, source, tmp_path):
    state = load(make, source).state
    (tmp_path / "moved").mkdir()
    (tmp_path / "other").mkdir()
    moved = ShardSource(expand_shards(str(make.shards(tmp_path / "moved", 3, 10, broken=(4, 17)))))
    load(make, moved, state=state)
    for number, shard in enumerate(expand_shards(str(tmp_path / "moved"))):
        shutil.copyfile(shard, tmp_path / "other" / f"t-{number}.tar")
    other = ShardSource(expand_shards(str(tmp_path / "other")))
    with pytest.raises(UserError, match=r"data\.shards \w{12} -> \w{12} since"):
        load(make, other, state=state)


def test_another_world_than_the_checkpoint_s_is_refused(make):
    cfg = make.config()
    cfg.data.source, cfg.data.shards = "scenes", None
    state = load(make, Pictures(), cfg=cfg).state
    cfg.data.scenes.seed = 3
    with pytest.raises(UserError, match=r"data\.scenes\.seed 0 -> 3 since"):
        load(make, Pictures(), cfg=cfg, state=state)


def test_the_decoder_is_the_one_asked_for(make, source, monkeypatch):
    calls = []
    monkeypatch.setattr("distill.data.decode.decode_simply", lambda *_: calls.append(1))  # None: Pillow takes over
    asked = {name: list(load(make, source, cfg=make.config(decoder=name))) for name in ("pillow", "simplejpeg")}
    assert len(calls) >= 32
    assert all(equal(a, b) for a, b in zip(*asked.values()))
    calls.clear()
    list(load(make, source, cfg=make.config(decoder="pillow")))
    assert not calls


def test_a_run_goes_on_with_its_own_decoder_only(make, source):
    plain, fast = (make.config(decoder=name) for name in ("pillow", "simplejpeg"))
    state = load(make, source, cfg=plain).state
    unnamed = {key: value for key, value in state.items() if key != "decoder"}  # before checkpoints named it
    for then in (state, unnamed):
        load(make, source, cfg=plain, state=then)
        with pytest.raises(UserError, match=r"decoder pillow -> simplejpeg since .* Set data.decoder=pillow, or start"):
            load(make, source, cfg=fast, state=then)
    pixels = load(make, Pictures(), cfg=plain).state
    load(make, Pictures(), cfg=fast, state=pixels)  # nothing to decode


def test_fewer_indexed_shards_than_workers_are_fine(make, tmp_path):
    source = ShardSource(expand_shards(str(make.shards(tmp_path, 1, 4))))
    assert len(list(load(make, source, workers=2, world=2))) == 4


class Pictures:
    """Decoded pixels, as the scenes give them; `fatal` kills the process that asks for it."""

    def __init__(self, fatal=None):
        self.fatal = fatal

    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        pixels = np.full((40, 40, 3), index, np.uint8)
        return Sample(str(index), "made", pixels, {name: [name] for name in ("web", "synthetic", "detailed")})


def test_decoded_sources(make):
    for batch in load(make, Pictures()):
        assert torch.equal(batch.global_[:, 0, 0, 0].long(), batch.index)


def test_a_worker_that_dies_is_an_error_not_a_hang(make):
    with pytest.raises(UserError, match=r"A loader process died .*Lower data.workers"):
        list(load(make, Pictures(fatal=9), workers=2))


def test_leaving_early_ends_the_workers(make, source):
    import multiprocessing

    batches = iter(load(make, source, workers=2))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


SCRIPT = """
import sys, time
import numpy as np
from distill.config.schema import Config
from distill.data.loader import build_loader
from distill.data.sample import Sample

class Source:
    def __len__(self): return 8
    def __getitem__(self, index):
        return Sample("k", "s", np.zeros((40, 40, 3), np.uint8), {"web": ["w"]})

class Tokenizer:
    def encode(self, texts, context):
        return np.ones((len(texts), context), np.int64), np.ones((len(texts), context), bool), 0

cfg = Config()
cfg.train.batch, cfg.train.steps, cfg.train.accelerator, cfg.data.workers = 4, 10**6, "cpu", 2
cfg.captions.cls2 = []
for number, batch in enumerate(build_loader(Source(), cfg, Tokenizer(), grid=(2, 2))):
    if number == 1:
        print("ready", flush=True)
"""


def test_ctrl_c_ends_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it for what it runs behind
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader processes too
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err
    for _ in range(50):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("processes are left")


def test_a_caption_without_words_is_skipped_and_named(make):
    class Strict:
        """Refuses a text in which it finds no word, as our tokenizers do."""

        def encode(self, texts, context):
            if "..." in texts:
                raise UserError("Text 0 is empty")
            return make.tokenizer.encode(texts, context)

    class Wordless(Pictures):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return replace(sample, captions=sample.captions | {"web": ["..."]}) if index == 3 else sample

    loader = build_loader(Wordless(), make.config(), Strict(), grid=GRID)
    failures = [f for batch in loader for f in batch.failures]
    assert [f.key for f in failures] == ["3"]
    assert "caption without words" in failures[0].reason
