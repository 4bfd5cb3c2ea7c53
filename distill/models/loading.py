"""Reading models back: exported files, training checkpoints and run folders.

An exported model is `{"format": "everypatch-model", "spec": ..., "weights": ...}`. A training checkpoint has, among its
other state, `{"students": {name: {"spec": ..., "weights": ...}}}`. A run folder is read at its newest checkpoint, which
may be a file or, of a run whose weights were spread over ranks, a folder of shards: both read the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from distill.errors import UserError, unknown
from distill.models import shard_files
from distill.models.pair import ImageTextModel

FORMAT = "everypatch-model"
SPARE = ".ema"  # after a student's name: its spare average
_STEP = re.compile(r"step_(\d+)(\.pt)?")


def build_from_checkpoint(content: dict[str, Any], name: str | None, *, origin: str) -> ImageTextModel:
    """The model in a checkpoint that `read_checkpoint` returned; `name` picks a student, `origin` is for messages."""
    entry = entry_of(content, name, origin)
    try:
        model = ImageTextModel.from_spec(entry["spec"])
        model.load_state_dict(entry["weights"])
    except (KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The model in {origin} does not fit this version of everypatch: {reason}.") from error
    return model.eval()


def save_model(model: ImageTextModel, path: str | Path) -> None:
    """Writes `model` as one self-contained file that `distill.load` reads."""
    torch.save({"format": FORMAT, **pack_model(model)}, path)


def pack_model(model: ImageTextModel) -> dict[str, Any]:
    """`{"spec", "weights"}`: a student's entry in a checkpoint."""
    return {"spec": model.spec(), "weights": model.state_dict()}


def find_checkpoint(path: str | Path) -> Path:
    """`path`, or `run:PATH`, itself if it is a checkpoint (a file, or a folder of shards); of a run its newest one."""
    path = Path(str(path).removeprefix("run:")).expanduser()
    if path.is_file() or shard_files.is_sharded_checkpoint(path):
        return path
    if not path.is_dir():
        raise UserError(f"No run or checkpoint at {path}. Give a run's folder, or a .pt file.")
    steps = {int(match[1]): file for file in path.glob("checkpoints/*") if (match := _STEP.fullmatch(file.name))}
    cells = sorted(path.glob("cells/*/run/checkpoints/*"))
    if not steps and cells:
        raise UserError(f"{path} is a study's folder, of many runs. Give one of them, as {cells[0].parents[1]}.")
    if not steps:
        raise UserError(
            f"No checkpoint in {path / 'checkpoints'}: the run has not saved one, or this is not a run's folder."
        )
    return steps[max(steps)]


def checkpoint_files(checkpoint: Path) -> list[Path]:
    """The files that a checkpoint consists of: itself, or its shards."""
    return sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]


def read_checkpoint(
    file: Path, optimizers: bool = False, like: shard_files.Like = lambda place: None
) -> dict[str, Any]:
    """The checkpoint's dictionary, tensors mapped from disk on CPU; no code in the file is run.

    Of a folder of shards tensors are read, not mapped, and the optimisers' state only when asked. `like`: for each
    place in the dictionary a sharded tensor where this rank needs only its slice, else None.
    """
    try:
        if file.is_dir():
            content = shard_files.read(file, like, optimizers)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"No checkpoint at {file}.") from None
    except Exception as error:  # the unpickler and the zip reader raise many types for a damaged or foreign file
        text = f"Cannot read {file}: it is truncated, damaged or not a checkpoint of ours."
        if (before := _before(file)) is not None:
            text += f" The one before is {before}: to go on from there remove the damaged one."
        raise UserError(text) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a checkpoint of ours: it holds a {type(content).__name__}.")
    return shard_files.place(content, like)


def _before(file: Path) -> Path | None:
    """The checkpoint of the same run that is older than `file` by the fewest steps."""
    steps = {int(match[1]): path for path in file.parent.iterdir() if (match := _STEP.fullmatch(path.name))}
    own = _STEP.fullmatch(file.name)
    older = [step for step in steps if own is not None and step < int(own[1])]
    return steps[max(older)] if older else None


def entry_of(content: dict[str, Any], name: str | None, origin: str) -> dict[str, Any]:
    """The model `{"spec", "weights"}` in a checkpoint: the student `name`, or the first; `origin` is for messages."""
    if content.get("format") == FORMAT:
        if name:
            raise UserError(f"{origin} holds one model without a name: leave out '#{name}'.")
        return content
    students = content.get("students")
    if not isinstance(students, dict) or not students:
        keys = ", ".join(list(map(str, content))[:5])
        raise UserError(f"{origin} is not a checkpoint of ours: it holds {keys or 'nothing'}, and no students.")
    plain = (name or next(iter(students))).removesuffix(SPARE)
    if plain not in students:
        raise unknown("student", plain, students, fix=f"They are the students in {origin}.")
    entry = students[plain]
    if not name or name == plain:
        return entry
    if entry.get("ema") is None:
        raise UserError(f"{origin} has no average of '{plain}', as its students.*.ema was null: leave out '{SPARE}'.")
    return {**entry, "weights": entry["ema"]}
