"""From the recipe's `data` section to a source of samples, and the captions in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from distill.config.schema import SOURCES, DataConfig
from distill.data.sample import Sample, SampleError, Source
from distill.data.shards import ShardSource, expand_shards, is_remote
from distill.data.stream import StreamSource
from distill.errors import UserError, unknown


def open_source(cfg: DataConfig) -> Source | StreamSource:
    """The scenes, local tars by index, or, if any shard is a pipe or url, a stream of all of them. Raises UserError."""
    if cfg.source == "scenes":
        from distill.data.scenes import SceneSource

        return SceneSource(cfg.scenes, dense=False)
    if cfg.source != "shards":
        raise unknown("data.source", cfg.source, SOURCES)
    if not cfg.shards:
        raise UserError("data.source is 'shards' but data.shards is empty. Set it to a glob, brace range, pipe or url.")
    return open_shards(cfg.shards, cfg.epoch)


def open_shards(pattern: str, epoch: int | None = None, masks: bool = False) -> Source | StreamSource:
    """The samples of the tars that `pattern` names; `masks` decodes their `mask.png` (local tars only)."""
    shards = expand_shards(pattern)
    if any(is_remote(shard) for shard in shards):
        return StreamSource(shards, epoch)
    return ShardSource(shards, masks)


def caption_texts(source: Source | StreamSource, fields: Sequence[str], limit: int = 100_000) -> Iterator[str]:
    """Texts of the listed fields from at most `limit` samples spread over the source, to build a vocabulary from.

    A stream gives its first samples. Unreadable samples are passed over.
    """
    corpus = getattr(source, "caption_corpus", None)
    if corpus is not None:
        yield from corpus(min(limit, len(source)) if isinstance(source, Source) else limit)
        return
    for captions in sampled_captions(source, limit):
        for field in fields:
            yield from captions.get(field, ())


def sampled_captions(source: Source | StreamSource, limit: int) -> Iterator[dict[str, list[str]]]:
    """The caption fields of at most `limit` samples spread over the source; unreadable ones are passed over.

    Raises UserError, with the first reason, when none can be read.
    """
    problems: list[SampleError] = []
    seen = False
    for record in _caption_records(source, limit):
        if isinstance(record, SampleError):
            problems.append(record)
            continue
        seen = True
        yield record
    if problems and not seen:
        raise UserError(f"No sample could be read from data.shards. First problem: {problems[0]}.")


def _caption_records(source: Source | StreamSource, limit: int) -> Iterator[dict[str, list[str]] | SampleError]:
    if isinstance(source, StreamSource):
        records = (record for shard in source.shards for record in source.records(shard))
        yield from (r.captions if isinstance(r, Sample) else r for r in islice(records, limit))
        return
    read = getattr(source, "captions", None) or (lambda index: source[index].captions)
    for index in spread(len(source), limit):
        try:
            yield read(index)
        except SampleError as error:
            yield error


def spread(length: int, limit: int) -> list[int]:
    """At most `limit` indices spread evenly over `range(length)`."""
    count = min(length, limit)
    return [number * length // count for number in range(count)]
