"""A checkpoint in parts: every rank writes the slices it holds, and any number of ranks reads them back.

    step_00001000/
        plain.pt               the checkpoint's dictionary; in the place of a sharded tensor its name in the other files
        shard-*.safetensors    one file a rank (torch.distributed.checkpoint)

As in a checkpoint of one file there are only tensors and plain values: no code in it is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.models.sharding import is_sharded, placed_like

PLAIN = "plain.pt"
MARK = "sharded tensor"  # {MARK: name} stands for the tensor of that name
Like = Callable[[str], Any]  # from a tensor's place in the dictionary to the tensor it will be copied to, or None


def is_sharded_checkpoint(path: Path) -> bool:
    return (path / PLAIN).is_file()


def split(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The dictionary with names in the place of sharded tensors, and those tensors by name (`a/b/0/c`)."""
    shards: dict[str, Tensor] = {}

    def take(place: str, value: Any) -> Any:
        if not is_sharded(value):
            return value
        shards[place] = value.detach()
        return {MARK: place}

    return _mapped(content, take), shards


def write_shards(folder: Path, shards: dict[str, Tensor]) -> None:
    """Writes this rank's slices and waits until they are on disk. Collective; raises OSError on all ranks alike."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    try:
        dcp.save(dict(shards), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # not an Exception: it would pass every handler
        reasons = {str(failure) for failure, _ in error.failures.values()}
        raise OSError("; ".join(sorted(reasons))) from error


def read(folder: Path, like: Like, optimizers: bool) -> dict[str, Any]:
    """The checkpoint's dictionary with every tensor in its place, as if it had been one file.

    `like` says where this rank needs only its slice (see `Like`); what has no like is read whole. `optimizers`: whether
    to read their state, which nothing but resuming needs. Every rank reads for itself.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    content = torch.load(folder / PLAIN, map_location="cpu", weights_only=True)
    if not optimizers:
        content.pop("optimizers", None)
    names = [value[MARK] for value in places(content).values() if _is_mark(value)]
    shapes = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {}
    for name in names:
        own = like(name)
        there: Any = shapes[name]
        empty = torch.empty(there.size, dtype=there.properties.dtype)
        tensors[name] = torch.empty_like(own.detach()) if is_sharded(own) else empty
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each reads for itself: as meant
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return _mapped(content, lambda _, value: tensors[value[MARK]] if _is_mark(value) else value)


def place(content: Mapping[str, Any], like: Like) -> dict[str, Any]:
    """The dictionary with whole tensors cut to the slices that `like` asks for."""

    def cut(where: str, value: Any) -> Any:
        own = like(where) if isinstance(value, Tensor) and not is_sharded(value) else None
        return placed_like(value, own) if is_sharded(own) else value

    return _mapped(content, cut)


def places(content: Mapping[str, Any]) -> dict[str, Any]:
    """Every value in nested dictionaries and lists by its place, `a/b/0/c`."""
    found: dict[str, Any] = {}
    _mapped(content, found.__setitem__)
    return found


def _is_mark(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {MARK}


def _mapped(value: Any, change: Callable[[str, Any], Any], place: str = "") -> Any:
    """Nested dictionaries and lists with `change(place, leaf)` for every leaf; a mark is a leaf."""
    inner = f"{place}/" if place else ""
    if isinstance(value, Mapping) and not _is_mark(value):
        return {key: _mapped(item, change, f"{inner}{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change, f"{inner}{i}") for i, item in enumerate(value))
    return change(place, value)
