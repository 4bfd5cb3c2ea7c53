"""Webdataset tars on local disks: from a pattern to files, and from files to samples by index."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import braceexpand
import numpy as np
from rich.progress import track

from distill.data.captions import parse_captions
from distill.data.decode import decode_mask
from distill.data.index import SUFFIX as INDEX
from distill.data.index import TarIndex, build_index, open_index
from distill.data.manifest import SUFFIX as MANIFEST
from distill.data.sample import Sample, SampleError
from distill.errors import UserError

SCHEMES = ("pipe:", "http://", "https://")
JOIN = "::"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
BESIDE = (INDEX, MANIFEST)  # what we put beside shards: a glob may match it, but it is none
OPEN_FILES = 32  # file handles and loaded indexes kept per process


def is_remote(shard: str) -> bool:
    """Whether a shard can only be read from beginning to end: `pipe:`, `http://` or `https://`."""
    return shard.startswith(SCHEMES)


def expand_shards(pattern: str) -> list[str]:
    """The shards a pattern names: globs, brace ranges (`{000..041}`), pipes and urls, several joined by `::`.

    Files of one glob are sorted; parts keep the order they are written in. Raises UserError when a part names nothing.
    """
    parts = [part.strip() for part in pattern.split(JOIN)]
    if not all(parts):
        raise UserError(f"data.shards is '{pattern}': an empty name. Give a glob, brace range, pipe or url.")
    return [shard for part in parts for shard in _expand_part(part)]


def _expand_part(part: str) -> list[str]:
    try:
        names = list(braceexpand.braceexpand(part, escape=False))
    except ValueError as error:
        raise UserError(f"data.shards '{part}': braces do not match. Write a range as {{000..041}}.") from error
    if is_remote(part):
        return names
    found: list[str] = []
    for name in names:
        path = os.path.expanduser(name.removeprefix("file:"))
        found += _local(path, part)
    packed = next((path for path in found if path.lower().endswith(COMPRESSED)), None)
    if packed:
        raise UserError(f"{packed} is compressed and has no random access. Unpack it, or use 'pipe:gzip -dc {packed}'.")
    return found


def _local(path: str, part: str) -> list[str]:
    if os.path.isdir(path):
        found = sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))
        path = os.path.join(path, "*.tar")
    elif os.path.exists(path):
        return [path]
    else:
        found = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p) and not p.endswith(BESIDE))
    if not found:
        folder = os.path.dirname(path) or "."
        where = f"{folder} has {_describe(folder)}" if os.path.isdir(folder) else f"there is no folder {folder}"
        raise UserError(f"No shard matches '{part}': looked for {path}, but {where}. Check data.shards.")
    return found


def _describe(folder: str) -> str:
    names = sorted(os.listdir(folder))
    tars = [name for name in names if name.endswith(".tar")]
    if tars:
        return f"{len(tars)} .tar files ({', '.join(tars[:3])}{', ...' if len(tars) > 3 else ''})"
    return f"{len(names)} entries and no .tar file"


def shards_digest(shards: Sequence[str]) -> str:
    """12 hex digits for a list of shards, in order."""
    return hashlib.sha256("\n".join(shards).encode()).hexdigest()[:12]


class ShardSource:
    """Local tars as one sequence of samples, read by offset. Images stay encoded.

    Safe to hand to worker processes: file handles are opened where they are used. `failures` lists what the index
    found damaged. `first`: no more than the first records of each shard, without an index on disk. Raises UserError
    when no shard holds a sample.
    """

    def __init__(self, shards: Sequence[str], masks: bool = False, first: int | None = None):
        self.shards = list(shards)
        self.masks = masks  # decode `mask.png` into Sample.mask
        indexes = _open_indexes(self.shards, first)
        self.ends = np.cumsum([index.count for index in indexes], dtype=np.int64)  # [shards]
        self.failures = [
            SampleError(shard, key, reason)
            for shard, index in zip(self.shards, indexes)
            for key, reason in index.broken
        ]
        self._indexes = [TarIndex(i.size, i.mtime_ns, i.count, [], i.file) if i.file else i for i in indexes]
        self._loaded: OrderedDict[int, TarIndex] = OrderedDict()
        self._files: OrderedDict[int, int] = OrderedDict()
        if len(self) == 0:
            cause = f"First problem: {self.failures[0]}." if self.failures else f"First: {self.shards[0]}."
            raise UserError(f"{len(self.shards)} shards hold no image. {cause} Check data.shards.")

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`. Raises SampleError when it cannot be read, IndexError when out of range."""
        shard, key, spans = self._locate(index)
        image = self._read(shard, key, spans[0:2])
        mask = None
        if self.masks and spans[4] >= 0:
            mask = decode_mask(self._read(shard, key, spans[4:6]), self.shards[shard], key)
        return Sample(key, self.shards[shard], image, self._captions(shard, key, spans), mask)

    def identity(self) -> str:
        """12 hex digits from the names of the shards, without their folders, and their sizes."""
        return shards_digest([f"{os.path.basename(s)} {i.size}" for s, i in zip(self.shards, self._indexes)])

    def name(self, index: int) -> tuple[str, str]:
        """Shard and key of the sample at `index`."""
        shard, key, _ = self._locate(index)
        return self.shards[shard], key

    def captions(self, index: int) -> dict[str, list[str]]:
        """The caption fields of the sample at `index`, without reading its image. Raises SampleError."""
        return self._captions(*self._locate(index))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_loaded": OrderedDict(), "_files": OrderedDict()}

    def __del__(self) -> None:
        for handle in self.__dict__.get("_files", {}).values():
            os.close(handle)

    def _locate(self, index: int) -> tuple[int, str, np.ndarray]:
        """`(shard number, key, spans int64 [6])` of a sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self.ends, index, side="right"))
        table = self._table(shard)
        assert table.spans is not None
        row = index - (int(self.ends[shard - 1]) if shard else 0)
        return shard, table.keys[row], table.spans[row]

    def _captions(self, shard: int, key: str, spans: np.ndarray) -> dict[str, list[str]]:
        if spans[2] < 0:
            return {}
        return parse_captions(self._read(shard, key, spans[2:4]), self.shards[shard], key)

    def _table(self, shard: int) -> TarIndex:
        if self._indexes[shard].file is None:
            return self._indexes[shard]
        if shard not in self._loaded:
            head = self._indexes[shard]
            loaded = TarIndex(head.size, head.mtime_ns, head.count, [], head.file)
            try:
                loaded.load()
            except (OSError, ValueError, KeyError):
                loaded = open_index(self.shards[shard])  # the stored index went away meanwhile
                loaded.load()
            self._loaded[shard] = loaded
            if len(self._loaded) > OPEN_FILES:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(shard)
        return self._loaded[shard]

    def _read(self, shard: int, key: str, span: np.ndarray) -> bytes:
        offset, size = int(span[0]), int(span[1])
        try:
            if shard not in self._files:
                self._files[shard] = os.open(self.shards[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                if len(self._files) > OPEN_FILES:
                    os.close(self._files.popitem(last=False)[1])
            self._files.move_to_end(shard)
            data = os.pread(self._files[shard], size, offset)  # needs no shared file position: safe after a fork
        except OSError as error:
            raise SampleError(self.shards[shard], key, f"cannot read ({error.strerror or error})") from error
        if len(data) != size:
            raise SampleError(self.shards[shard], key, "truncated tar")
        return data


def _open_indexes(shards: list[str], first: int | None) -> list[TarIndex]:
    """The indexes of all shards, several at a time. Raises UserError for a shard that cannot be opened."""

    def one(shard: str) -> TarIndex:
        try:
            return open_index(shard) if first is None else build_index(shard, first)
        except OSError as error:
            raise UserError(f"Cannot read shard {shard}: {error.strerror or error}. Check data.shards.") from error

    with ThreadPoolExecutor(8) as pool:
        results = pool.map(one, shards)
        if len(shards) > 64:
            results = track(results, "opening shards", total=len(shards), transient=True)  # type: ignore[assignment]
        return list(results)
