"""Opening a frozen teacher from a source string, and saying in one line what was opened."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config.schema import HeadsConfig
from distill.errors import unknown
from distill.models.joint_heads import Heads
from distill.models.loading import build_from_checkpoint, find_checkpoint, read_checkpoint
from distill.models.pair import ImageTextModel
from teachers.targets import TargetHeads

KINDS = ("run",)


@dataclass
class OpenedTeacher:
    """A loaded model with its heads and centres."""

    source: str
    path: Path
    sha256: str  # of the checkpoint file
    model: ImageTextModel
    heads: TargetHeads | None
    prototypes: int

    def line(self) -> str:
        """Source, hash, normalisation, token layout and grid, in one line."""
        trunk = self.model.image
        grid = trunk.position_grid
        return (
            f"{self.source}  sha256 {self.sha256[:12]}  {trunk.arch}  input [0, 1], no normalisation  "
            f"{trunk.cls_tokens} CLS + patches of {trunk.patch} px  position grid {grid}x{grid}  "
            + (f"own heads, {self.prototypes} prototypes" if self.heads is not None else "no heads")
        )


def open_teacher(source: str) -> OpenedTeacher:
    """Opens `run:PATH` (a run's folder or a checkpoint file; `#NAME` picks a student, or the co-trained `teacher`).

    For a run with an averaged trunk (`teacher.mode: ema`) the averaged trunk is the teacher; otherwise the student's
    own trunk. Heads and centres are the run's averaged ones; a student that followed another model (distilled or
    co-trained) teaches with its own trained heads.
    Raises UserError for an unknown kind of source, a missing path, or a file that is no checkpoint.
    """
    kind, colon, rest = source.partition(":")
    if not colon or kind not in KINDS:
        raise unknown("teacher source", kind if colon else source, KINDS, "Write teacher.source=run:PATH.")
    path, _, name = rest.partition("#")
    file = find_checkpoint(path)
    checkpoint = read_checkpoint(file)
    learners = dict(checkpoint.get("students") or {})
    if checkpoint.get("teacher_learner") is not None:
        learners["teacher"] = checkpoint["teacher_learner"]
    content = checkpoint | {"students": learners} if learners else checkpoint
    model = build_from_checkpoint(content, name or None, origin=str(file))
    digest = file_hash(file)
    learner = learners.get(name or next(iter(learners), ""))
    if learner is None or learner.get("heads") is None:
        return OpenedTeacher(source, file, digest, model, None, 0)
    heads = _heads(checkpoint, learner, model, own_teacher=name == "teacher")
    return OpenedTeacher(source, file, digest, model, heads, checkpoint["heads_config"]["prototypes"])


def _heads(saved: dict[str, Any], learner: dict[str, Any], model: ImageTextModel, own_teacher: bool) -> TargetHeads:
    """The heads and centres that `learner` teaches with; in `ema` mode also gives `model` the averaged trunk."""
    config = HeadsConfig(**saved["heads_config"])
    kept, width = saved["teacher"], saved["teacher"]["feature_width"]
    heads = TargetHeads(Heads(model.image.width, config, width), config.prototypes, width)
    followed_another = kept["mode"] == "frozen" or (kept["mode"] == "cotrained" and not own_teacher)
    if followed_another or kept["mode"] == "none":  # nothing of its own was averaged
        heads.heads.load_state_dict(learner["heads"])
    if not followed_another:
        heads.load_state_dict(kept["state"]["heads"], strict=kept["mode"] != "none")
    if kept["mode"] == "ema":
        model.image.load_state_dict(kept["state"]["trunk"])
    return heads


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
