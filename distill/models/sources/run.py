"""`run:PATH[#NAME]`, or a plain path: runs, training checkpoints and saved models of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.models.loading import (
    SPARE,
    build_from_checkpoint,
    checkpoint_files,
    entry_of,
    find_checkpoint,
    read_checkpoint,
)
from distill.models.npz import check_finite
from distill.models.pair import ImageTextModel
from distill.models.sources.base import OpenedModel, SourceFacts, files_hash, pair_facts


def open_source(source: str, where: str) -> OpenedModel:
    """The student NAME (default: the first) at the newest checkpoint of a run.

    `teacher` is the co-trained one or, of a run with `teacher.mode: ema`, its student with the averaged image trunk.
    """
    file, content, name = read(where)
    model = build_from_checkpoint(content, name, origin=str(file))
    check_finite(model.state_dict(), str(file))
    return OpenedModel(source, model, _facts(source, file, model), content)


def describe_source(source: str, where: str) -> SourceFacts:
    file, content, name = read(where)
    entry = entry_of(content, name, str(file))
    with torch.device("meta"):
        model = ImageTextModel.from_spec(entry["spec"])
    return _facts(source, file, model)


def learners_of(content: dict[str, Any]) -> dict[str, Any]:
    """The learners in a checkpoint by name: its students, and `teacher` where one was trained or averaged beside."""
    found = dict(content.get("students") or {})
    teacher = content.get("teacher_learner") or _averaged(content, found)
    return found if teacher is None else found | {"teacher": teacher}


def _averaged(content: dict[str, Any], students: dict[str, Any]) -> dict[str, Any] | None:
    """The student with the image trunk that a run averaged (`teacher.mode: ema`); None where it did not."""
    teacher = content.get("teacher") or {}
    if teacher.get("mode") != "ema" or "teacher" in students:
        return None
    student = next(iter(students.values()))
    trunk = {f"image.{name}": value for name, value in teacher["state"]["trunk"].items()}
    return {**student, "weights": {**student["weights"], **trunk}, "ema": None}


def learner_name(source: str, learners: dict[str, Any]) -> str:
    """The learner that `source` names: what follows `#` (of a spare average, its student's name), else the first."""
    return source.partition("#")[2].removesuffix(SPARE) or next(iter(learners), "")


def read(where: str) -> tuple[Path, dict[str, Any], str | None]:
    """The checkpoint's file, its content with the run's teacher among the students, and the name asked for."""
    path, _, name = where.partition("#")
    file = find_checkpoint(path)
    content = read_checkpoint(file)
    if content.get("students"):
        content = content | {"students": learners_of(content)}
    return file, content, name or None


def _facts(source: str, file: Path, model: ImageTextModel) -> SourceFacts:
    return pair_facts(model, source=source, kind="run", where=str(file), sha256=files_hash(checkpoint_files(file)))
