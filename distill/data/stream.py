"""Shards that can only be read from beginning to end: `pipe:` commands and http(s) urls.

What a stream can promise is less than what an index can: samples are shuffled in a buffer, each loader process owns
every n-th shard, and a run continues exactly only with the same number of ranks and loader processes, the same shards,
and commands that repeat their output; it does so by reading again, and skipping, what was read before.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import IO, Any

from distill.data.captions import parse_captions
from distill.data.members import Parts, samples
from distill.data.order import BUFFER, SHARDS, keyed_rng
from distill.data.sample import Sample, SampleError
from distill.data.shards import is_remote, shards_digest
from distill.errors import UserError

_gopen = import_module("webdataset.gopen")  # the package gives a function the name of this module

Record = Sample | SampleError  # a sample, or why there is none


class StreamSource:
    """Samples from shards read in sequence. `epoch` is the number of samples counted as an epoch."""

    def __init__(self, shards: Sequence[str], epoch: int | None):
        if epoch is None:
            raise UserError("data.epoch is null, but pipes and urls have no known length. Set it to a sample count.")
        self.shards, self.epoch = list(shards), epoch

    def identity(self) -> str:
        """12 hex digits from the commands and urls."""
        return shards_digest(self.shards)

    def records(self, shard: str) -> Iterator[Record]:
        """The records of one shard. Damage, or a command that fails, ends the shard with a SampleError."""
        seen = 0
        try:
            stream = _open(shard)
            problems: list[Exception] = []
            try:
                # a command's output is read to its end even when the command failed; its status is checked on closing
                content = stream.stream if isinstance(stream, _gopen.Pipe) else stream
                for part in samples(_files(content, problems)):
                    seen += 1
                    yield _record(shard, part)
            except GeneratorExit:
                with contextlib.suppress(Exception):  # the command dies of a closed pipe
                    stream.close()
                raise
            stream.close()  # raises when the command failed
            if problems:
                raise problems[0]
        except Exception as error:  # tarfile, curl, the shell: all mean that the rest of the shard is lost
            text = (str(error).splitlines() or [type(error).__name__])[0]
            yield SampleError(shard, "-", f"shard ended early (after {seen} samples: {text[:200]})")

    def endless(self, share: Sequence[str], seed: int, owner: int) -> Iterator[Record | None]:
        """The records of `share` pass after pass, shards in a new order each time, None at the end of each pass.

        Raises UserError when a whole pass gave no sample.
        """
        passes = 0
        while True:
            usable = False
            for number in keyed_rng(SHARDS, seed, owner, passes).permutation(len(share)):
                for record in self.records(share[number]):
                    usable = usable or isinstance(record, Sample)
                    yield record
            if not usable:
                raise UserError(
                    f"No sample could be read from {len(share)} shards, first {share[0]}. Check data.shards."
                )
            passes += 1
            yield None


class SlotStream:
    """What one loader process draws from: its shards, shuffled in a buffer, one record per place of a batch.

    `owner` of `owners` loader processes over all ranks reads every `owners`-th shard; `shuffle` is shared among them.
    """

    def __init__(self, source: StreamSource, seed: int, shuffle: int, owner: int, owners: int):
        share = source.shards[owner::owners]
        self._records = shuffled(source.endless(share, seed, owner), shuffle // owners, seed, owner)
        self._ahead: deque[Record] = deque()

    def candidate(self, k: int) -> tuple[int, Sample]:
        """The k-th record from here on, as `(-1, sample)`. Raises SampleError when it is not usable."""
        while len(self._ahead) <= k:
            self._ahead.append(next(self._records))
        record = self._ahead[k]
        if isinstance(record, SampleError):
            raise record
        return -1, record

    def advance(self) -> None:
        """Moves on by one record, whether or not it was looked at."""
        if self._ahead:
            self._ahead.popleft()
        else:
            next(self._records)


def shuffled(records: Iterator[Record | None], size: int, seed: int, owner: int) -> Iterator[Record]:
    """An endless stream through a shuffle buffer of `size` records, or of one pass if that is less.

    A size of 0 or 1 leaves the order as it is.
    """
    rng = keyed_rng(BUFFER, seed, owner)
    buffer: list[Record] = []
    for record in records:
        if record is None:
            size = min(size, len(buffer))  # the first pass ended: no sample is held twice
            continue
        if len(buffer) < size:
            buffer.append(record)
            continue
        if not buffer:
            yield record
            continue
        place = int(rng.integers(size))
        buffer[place], record = record, buffer[place]
        yield record


def check_shards_vs_workers(shards: int, workers: int, world: int, indexed: bool = False) -> None:
    """Raises UserError when there are fewer streamed shards than loader processes; indexed tars need no minimum."""
    owners = max(workers, 1) * world
    if indexed or shards >= owners:
        return
    fix = f"lower data.workers to {shards // world} or " if shards // world > 0 else ""
    raise UserError(
        f"{shards} streamed shards for {owners} loader processes ({max(workers, 1)} workers x {world} ranks); each "
        f"needs its own. Allowed: at most {shards} processes. To fix it, {fix}repack into at least {owners} shards."
    )


def _open(shard: str) -> Any:
    """A local tar as the indexed loader opens it, whatever its name; else what the command or url gives."""
    if not is_remote(shard):
        return open(shard, "rb")
    return _gopen.gopen(shard)


def _files(stream: IO[bytes], problems: list[Exception]) -> Iterator[tuple[str, bytes]]:
    """`(name, content)` of the files of a tar stream, read to its very end. Damage ends it and goes into `problems`."""
    ends: list[tarfile.HeaderError] = []

    class Header(tarfile.TarInfo):
        """Notes why there is no further header, which tarfile keeps to itself."""

        @classmethod
        def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
            try:
                return super().fromtarfile(archive)
            except tarfile.HeaderError as error:
                ends.append(error)
                raise

    try:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=Header) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                content = archive.extractfile(member) if member.isreg() and not _is_meta(member.name) else None
                if content is not None:
                    yield member.name, content.read()
            end = archive.offset
        while stream.read(1 << 16):  # padding: unread, the command would die of a closed pipe
            pass
        if not ends or not isinstance(ends[-1], tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"damaged tar, what follows byte {end} is lost")
    except Exception as error:
        problems.append(error)


def _is_meta(name: str) -> bool:
    """Whether webdataset passes over the file: its first folder has a name in double underscores."""
    folder = name.partition("/")[0]
    return len(folder) >= 4 and folder.startswith("__") and folder.endswith("__")


def _record(shard: str, part: Parts[bytes]) -> Record:
    if part.image is None:
        return SampleError(shard, part.key, "no image")
    try:
        captions = parse_captions(part.json, shard, part.key) if part.json is not None else {}
    except SampleError as error:
        return error
    return Sample(part.key, shard, part.image, captions)
