"""A side index of a tar: where each sample's files lie, so that any sample is two reads away.

The index is one JSON file, `X.tar.index.json`, beside the tar or, where that folder cannot be written, in the user's
cache folder. Its first line holds the tar's size and modification time, the number of samples and what is damaged; the
second the keys and the offsets. It is rebuilt when the tar changes. Writing is atomic, so that several processes may
build the same index at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from distill.data.members import Parts, samples

FORMAT = 1
SUFFIX = ".index.json"
BLOCK = 512  # bytes; a tar ends with two blocks of zeros
Span = tuple[int, int]  # (offset, size) in bytes; offset -1 where the sample has no such file
TRUNCATED: Span = (-2, 0)


@dataclass
class TarIndex:
    """The samples of one tar, in stored order."""

    size: int  # bytes of the tar
    mtime_ns: int
    count: int
    broken: list[tuple[str, str]] = field(default_factory=list)  # (key, reason) of what cannot be used
    file: str | None = None  # where the index is stored; None: nowhere, only in memory
    keys: list[str] = field(default_factory=list)
    spans: np.ndarray | None = None  # int64 [count, 6]: offset and size of the image, the json and the mask

    def load(self) -> TarIndex:
        """The same index with `keys` and `spans` filled in."""
        if self.spans is None and self.file is not None:
            with open(self.file, encoding="utf-8") as stream:
                body = json.load(stream)
            self.keys, self.spans = body["keys"], np.asarray(body["spans"], np.int64).reshape(-1, 6)
        return self


def open_index(tar: str) -> TarIndex:
    """The index of the tar at path `tar`, built and stored if there is none that fits. Raises OSError if unreadable."""
    stat = os.stat(tar)
    for path in places(tar):
        found = _read_head(path)
        if found is not None and (found.size, found.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return found
    index = build_index(tar)
    _store(index, places(tar))
    return index


def build_index(tar: str, first: int | None = None) -> TarIndex:
    """Reads the tar's headers, all or those of its `first` records, and stores nothing.

    A damaged tar keeps what precedes the damage, which is noted in `broken`.
    """
    stat = os.stat(tar)
    keys: list[str] = []
    rows: list[list[int]] = []
    broken: list[tuple[str, str]] = []
    for part in islice(samples(_files(tar, stat.st_size, broken)), first):
        if TRUNCATED in (part.image, part.json, part.mask):
            broken.append((part.key, "truncated tar"))
        elif part.image is None:
            broken.append((part.key, "no image"))
        else:
            keys.append(part.key)
            rows.append(_row(part))
    spans = np.asarray(rows, np.int64).reshape(-1, 6)
    return TarIndex(stat.st_size, stat.st_mtime_ns, len(keys), broken, None, keys, spans)


def places(tar: str) -> list[Path]:
    """Where an index of `tar` may lie: beside it, else in the cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    path = Path(tar).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "everypatch" / "index"
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return [path.with_name(path.name + SUFFIX), cache / f"{digest}-{path.name}{SUFFIX}"]


def _files(tar: str, size: int, broken: list[tuple[str, str]]) -> Iterator[tuple[str, Span]]:
    """`(name, (offset, size))` of the regular files; stops at the first damage and notes it in `broken`."""
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                if not member.isreg():
                    continue
                if member.offset_data + member.size > size:
                    yield member.name, TRUNCATED
                    return
                yield member.name, (member.offset_data, member.size)
            end = archive.offset
        with open(tar, "rb") as stream:
            stream.seek(end)
            if stream.read(BLOCK) != bytes(BLOCK):
                broken.append(("-", f"damaged tar: what follows byte {end} of {size} is lost"))
    except tarfile.ReadError as error:
        broken.append(("-", f"truncated or not a plain tar ({error})"))


def _row(part: Parts[Span]) -> list[int]:
    return [number for span in (part.image, part.json, part.mask) for number in (span or (-1, 0))]


def _read_head(path: Path) -> TarIndex | None:
    """The index without its samples, from its first line; None when there is none or it is not ours."""
    try:
        with open(path, encoding="utf-8") as stream:
            head = json.loads(stream.readline().rstrip().rstrip(",") + "}")
        if head["format"] != FORMAT:
            return None
        broken = [(key, reason) for key, reason in head["broken"]]
        return TarIndex(head["size"], head["mtime_ns"], head["count"], broken, str(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(index: TarIndex, paths: list[Path]) -> None:
    """Writes the index to the first of `paths` that can be written; if none can, it stays in memory only."""
    assert index.spans is not None
    head = {"format": FORMAT, "size": index.size, "mtime_ns": index.mtime_ns, "count": index.count}
    text = json.dumps({**head, "broken": index.broken})[:-1]
    text += ",\n" + json.dumps({"keys": index.keys, "spans": index.spans.ravel().tolist()})[1:] + "\n"
    for number, path in enumerate(paths):
        try:
            if number > 0:
                path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text)
        except OSError:
            continue
        index.file = str(path)
        return


def write_atomic(path: Path, text: str) -> None:
    """Writes `path` as a whole or not at all. Raises OSError when it cannot be written."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name[:80]}.", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
