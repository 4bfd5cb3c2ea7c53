"""Rows of bytes on disk with a record beside each: the files under `teacher.cache.path`.

    manifest.json           what the rows hold and of which views, see `marks`
    records.bin             int64 [rows, 10]: mark, then the eight numbers of a view, then the checksum of the row
    targets-00000.bin ...   the rows, about 1 GiB a file

A row is written before its record, and a record counts only when the row agrees with its checksum: what a killed
process, a full disk or a damaged file leaves behind is a missing row, never a wrong one. Several processes may write
at once. Files are read by position rather than mapped, as a mapped file that got shorter ends the process.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError

VERSION = 1
FILE_BYTES = 1 << 30
OPEN_FILES = 64
MARK = 0x45505443  # a record that was written
COLUMNS = 10
RECORD_BYTES = 8 * COLUMNS


def open_store(path: str, marks: dict[str, Any], rows: int, row_bytes: int) -> Store:
    """The store at `path`, made where there is none. Raises `UserError` when it holds other targets or other views."""
    folder = Path(path).expanduser()
    manifest = folder / "manifest.json"
    wanted = {"version": VERSION, "rows": rows, "row_bytes": row_bytes, **marks}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not manifest.exists():
            if any(folder.iterdir()) and not _ours(folder):
                raise UserError(f"teacher.cache.path={path} is not empty and no cache: give a folder of its own.")
            partial = folder / f"manifest.json.{os.getpid()}.partial"  # ranks write the same, each its own file
            partial.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, manifest)
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"teacher.cache.path={path}: {error.strerror}. Give a folder that can be written.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"teacher.cache.path={path}: {manifest} is damaged. Remove the folder.") from error
    wanted = json.loads(json.dumps(wanted))
    differences = [
        f"{key}: {found.get(key)} there, {wanted.get(key)} here"
        for key in {**wanted, **found}
        if found.get(key) != wanted.get(key)
    ]
    if differences:
        raise UserError(
            f"teacher.cache.path={path} holds other targets or targets of other views ({'; '.join(differences)}). "
            "Give another folder, or remove this one."
        )
    return Store(folder, rows, row_bytes)


def _ours(folder: Path) -> bool:
    """Whether everything in the folder could be what another rank is just making."""
    return all(file.name.startswith(("manifest.json", "records.bin", "targets-")) for file in folder.iterdir())


class Store:
    """`rows` rows of `row_bytes` bytes. Only the training process uses it, not the loader's."""

    def __init__(self, folder: Path, rows: int, row_bytes: int):
        self.folder, self.rows, self.row_bytes = folder, rows, row_bytes
        self.rows_a_file = max(1, FILE_BYTES // row_bytes)
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, row: int, out: np.ndarray) -> np.ndarray | None:
        """Fills `out`, uint8 `[row_bytes]`, and gives the row's view, int64 `[8]`; None when the row is not there."""
        raw = os.pread(self._file("records.bin"), RECORD_BYTES, row * RECORD_BYTES)
        if len(raw) != RECORD_BYTES:
            return None
        record = np.frombuffer(raw, dtype=np.int64)
        name, offset = self._place(row)
        if record[0] != MARK:
            return None
        data = os.pread(self._file(name), self.row_bytes, offset)
        if len(data) != self.row_bytes or zlib.crc32(data) != record[-1]:
            return None
        out[:] = np.frombuffer(data, dtype=np.uint8)
        return record[1:-1]

    def write(self, row: int, view: np.ndarray, data: np.ndarray) -> None:
        """Keeps `data`, uint8 `[row_bytes]`, of the view `[8]`. Raises `UserError` when there is no space."""
        record = np.array([MARK, *view, zlib.crc32(data.data)], dtype=np.int64)
        name, offset = self._place(row)
        try:
            _write(self._file(name), data.data, offset)
            _write(self._file("records.bin"), record.data.cast("B"), row * RECORD_BYTES)
        except OSError as error:
            free = shutil.disk_usage(self.folder).free / 2**30
            raise UserError(
                f"Cannot write to teacher.cache.path={self.folder} ({error.strerror}; {free:.1f} GiB free): what is "
                "there stays good. Free some space and continue with --resume, or set teacher.cache.path=null."
            ) from error

    def present(self) -> np.ndarray:
        """Which rows have a record, bool `[rows]`; whether the row itself is whole is seen when it is read."""
        path = self.folder / "records.bin"
        numbers = np.fromfile(path, dtype=np.int64) if path.exists() else np.zeros(0, dtype=np.int64)
        marks = numbers[: len(numbers) // COLUMNS * COLUMNS].reshape(-1, COLUMNS)[:, 0] == MARK
        return np.concatenate([marks, np.zeros(self.rows, dtype=bool)])[: self.rows]

    def _place(self, row: int) -> tuple[str, int]:
        """The file of a row and where in it the row begins."""
        file, inside = divmod(row, self.rows_a_file)
        return f"targets-{file:05d}.bin", inside * self.row_bytes

    def _file(self, name: str) -> int:
        if name not in self._files:
            self._files[name] = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            if len(self._files) > OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(name)
        return self._files[name]

    def __del__(self) -> None:
        for handle in self.__dict__.get("_files", {}).values():
            os.close(handle)


def _write(file: int, data: memoryview, offset: int) -> None:
    """All of `data`: one call may write less when the disk is nearly full, and the next then says so."""
    while len(data):
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done
