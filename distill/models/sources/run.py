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
    """The student NAME (default: the first; `teacher` is the co-trained one) at the newest checkpoint of a run."""
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
    """The learners in a checkpoint by name: its students, and `teacher` where one was co-trained."""
    co = {"teacher": content["teacher_learner"]} if content.get("teacher_learner") is not None else {}
    return dict(content.get("students") or {}) | co


def learner_name(source: str, learners: dict[str, Any]) -> str:
    """The learner that `source` names: what follows `#` (of a spare average, its student's name), else the first."""
    return source.partition("#")[2].removesuffix(SPARE) or next(iter(learners), "")


def read(where: str) -> tuple[Path, dict[str, Any], str | None]:
    """The checkpoint's file, its content with a co-trained teacher among the students, and the name asked for."""
    path, _, name = where.partition("#")
    file = find_checkpoint(path)
    content = read_checkpoint(file)
    if content.get("teacher_learner") is not None:
        content = content | {"students": learners_of(content)}
    return file, content, name or None


def _facts(source: str, file: Path, model: ImageTextModel) -> SourceFacts:
    return pair_facts(model, source=source, kind="run", where=str(file), sha256=files_hash(checkpoint_files(file)))
