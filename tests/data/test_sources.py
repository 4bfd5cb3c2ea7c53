import pytest

from distill.config.schema import DataConfig, ScenesConfig
from distill.data.shards import ShardSource
from distill.data.sources import caption_texts, open_source, spread
from distill.data.stream import StreamSource
from distill.errors import UserError


def test_open_source_by_kind(make, tmp_path):
    make.shards(tmp_path, 2, 2)
    scenes = open_source(DataConfig(scenes=ScenesConfig(count=3)))
    assert len(scenes) == 3
    assert isinstance(open_source(DataConfig(source="shards", shards=str(tmp_path))), ShardSource)
    mixed = f"{tmp_path}/s-000.tar::pipe:cat {tmp_path}/s-001.tar"
    stream = open_source(DataConfig(source="shards", shards=mixed, epoch=4))
    assert isinstance(stream, StreamSource)
    keys = [record.key for shard in stream.shards for record in stream.records(shard)]
    assert keys == ["00000", "00001", "00002", "00003"]


def test_bad_sources():
    with pytest.raises(UserError, match=r"Unknown data\.source 'shard'. Did you mean 'shards'"):
        open_source(DataConfig(source="shard"))
    with pytest.raises(UserError, match=r"data.shards is empty"):
        open_source(DataConfig(source="shards"))


def test_caption_texts_of_the_listed_fields(make, tmp_path):
    make.shards(tmp_path, 2, 2)
    source = ShardSource([str(tmp_path / "s-000.tar"), str(tmp_path / "s-001.tar")])
    assert list(caption_texts(source, ["web"])) == [f"web {n:05d}" for n in range(4)]
    assert list(caption_texts(source, ["synthetic", "web"], limit=1)) == ["one 00000", "two 00000", "web 00000"]
    assert list(caption_texts(source, ["web"], limit=2)) == ["web 00000", "web 00002"]  # spread over the source


def test_what_cannot_be_read_is_no_lack_of_captions():
    with pytest.raises(UserError, match=r"No sample could be read from data.shards. First problem: .*nope"):
        list(caption_texts(StreamSource(["pipe:cat /nope.tar"], 2), ["web"]))


def test_caption_texts_pass_over_bad_records(make, tmp_path):
    tar = make.tar(tmp_path / "x.tar", [*make.files("a"), ("b.jpg", make.image()), ("b.json", b"{")])
    assert list(caption_texts(ShardSource([str(tar)]), ["web"])) == ["web a"]
    assert list(caption_texts(StreamSource([f"pipe:cat {tar}"], 2), ["web"])) == ["web a"]


def test_caption_texts_of_the_scenes():
    source = open_source(DataConfig(scenes=ScenesConfig(count=4)))
    assert len(list(caption_texts(source, ["web"], 2))) == 6  # all three granularities of two scenes


def test_spread():
    assert spread(10, 3) == [0, 3, 6]
    assert spread(2, 5) == [0, 1]
