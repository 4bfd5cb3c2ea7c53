"""Reading npz files that may come from anywhere: shapes without the data, arrays without running code."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from distill.errors import UserError

SHOWN = 3  # mismatches that an error lists
_DAMAGED = (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError, RuntimeError, NotImplementedError)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in `path`, from their headers alone.

    Raises UserError for a missing file, a file that is no npz, a truncated one, and arrays of anything but numbers.
    """
    if not path.is_file():
        raise UserError(f"No file at {path}. Give the path of an npz file.")
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = npy.read_magic(member)
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, kind = read(member)
                shapes[name.removesuffix(".npy")] = _checked(path, name.removesuffix(".npy"), shape, kind)
    except _DAMAGED as error:
        raise _refusal(path, error) from error
    return shapes


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """The named arrays as float32 tensors. `allow_pickle` is off: nothing in the file can run.

    Raises UserError as `read_shapes`, and for values that are not finite.
    """
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in names:
                arrays[name] = torch.from_numpy(np.ascontiguousarray(file[name], dtype=np.float32))
    except _DAMAGED as error:
        raise _refusal(path, error) from error
    check_finite(arrays, str(path))
    return arrays


def check_finite(arrays: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError that names the first arrays with NaN or infinite values."""
    bad = list(islice((name for name, value in arrays.items() if not bool(value.isfinite().all())), SHOWN))
    if bad:
        raise UserError(f"{where} holds NaN or infinite values in {', '.join(bad)}: get an undamaged copy.")


def mismatches(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first names whose shapes differ, or that are missing or too many, as a phrase; None when all agree."""
    names = [*expected, *(name for name in found if name not in expected)]
    wrong = [name for name in names if found.get(name) != expected.get(name)]
    if not wrong:
        return None
    listed = "; ".join(_difference(name, found.get(name), expected.get(name)) for name in wrong[:SHOWN])
    return listed + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")


def _difference(name: str, found: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> str:
    if found is None:
        return f"{name} is missing"
    if expected is None:
        return f"{name} is not part of it"
    return f"{name} is {_shape(found)}, not {_shape(expected)}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _checked(path: Path, name: str, shape: tuple[int, ...], kind: np.dtype) -> tuple[int, ...]:
    if kind.kind not in "fiu":
        raise UserError(f"{path}: {name} holds {kind}, not numbers: this is not a file of weights, and it is not read.")
    return tuple(shape)


def _refusal(path: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    reason = " ".join(str(error).split())[:120]
    return UserError(f"Cannot read {path}: it is truncated, damaged or no npz file ({reason}). Get it again.")
