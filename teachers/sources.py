"""Opening a frozen teacher from a source string, and saying in one line what was opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.config.schema import HeadsConfig
from distill.models.joint_heads import Heads
from distill.models.loading import SPARE
from distill.models.source_kinds import split
from distill.models.sources import SourceFacts, open_model
from distill.models.sources.run import learner_name, learners_of, read
from teachers.heads.own import OwnHeads
from teachers.targets import TargetHeads


@dataclass
class OpenedTeacher:
    """A loaded model with its heads and centres; released encoders come without (`heads` None)."""

    source: str
    facts: SourceFacts
    model: Any  # `ImageTextModel` or `AdaptedModel`
    heads: TargetHeads | None
    own: OwnHeads | None = None  # what its heads are

    @property
    def prototypes(self) -> int:
        """Of its own heads; 0 without."""
        return 0 if self.own is None else self.own.sizes.prototypes

    @property
    def sha256(self) -> str | None:
        return self.facts.sha256

    def line(self) -> str:
        """Source, hash, normalisation, token layout, grid, parameters and heads, in one line."""
        return f"{self.facts.line()}  {heads_phrase(self.prototypes)}"


def heads_phrase(prototypes: int) -> str:
    return f"own heads, {prototypes} prototypes" if prototypes else "no heads"


def open_teacher(source: str) -> OpenedTeacher:
    """Opens any source that `distill.models.sources` knows (of a run, `#NAME` picks a student or its `teacher`).

    For a run with an averaged trunk (`teacher.mode: ema`) the averaged trunk is the teacher; otherwise the student's
    own trunk; `#NAME.ema` is the student's spare average. Heads and centres are the run's averaged ones; a student that
    followed another model (distilled or co-trained) teaches with its own trained heads. Every other source comes
    without heads.
    Raises UserError for an unknown kind of source, a missing path, or a file that is no checkpoint.
    """
    opened = open_model(source)
    checkpoint = opened.checkpoint
    learners = learners_of(checkpoint) if checkpoint is not None else {}
    name = learner_name(source, learners)
    learner = learners.get(name)
    if checkpoint is None or learner is None or learner.get("heads") is None or _regressed(checkpoint):
        return OpenedTeacher(source, opened.facts, opened.model, None)
    heads = _heads(checkpoint, learner, opened.model.image.width, own_teacher=name == "teacher")
    if checkpoint["teacher"]["mode"] == "ema" and not source.endswith(SPARE):
        opened.model.image.load_state_dict(checkpoint["teacher"]["state"]["trunk"])
    return OpenedTeacher(source, opened.facts, opened.model, heads, _own_heads(checkpoint))


def teacher_heads(source: str) -> OwnHeads | None:
    """What the heads are that `open_teacher(source)` finds; None without. Reads no weights."""
    kind, where = split(source)
    if kind != "run":
        return None
    _, checkpoint, _ = read(where)
    learners = learners_of(checkpoint)
    learner = learners.get(learner_name(source, learners))
    if checkpoint.get("teacher") is None or learner is None or learner.get("heads", {}) is None:
        return None
    if _regressed(checkpoint):
        return None
    return _own_heads(checkpoint)


def _own_heads(checkpoint: dict[str, Any]) -> OwnHeads:
    """The sizes of a run's heads, and those that it had a loss for: the others are as they were drawn."""
    objective = checkpoint.get("config", {}).get("objective", {})
    trained = tuple(part for part in ("cls", "patch") if objective.get(part, {}).get("weight", 1.0) > 0)
    return OwnHeads(HeadsConfig(**checkpoint["heads_config"]), trained)


def _regressed(checkpoint: dict[str, Any]) -> bool:
    """Whether a run regressed features: then some of its prototype heads were never trained."""
    objective = checkpoint.get("config", {}).get("objective", {})
    parts = [objective.get(name, {}) for name in ("cls", "patch")]
    return any(part.get("weight", 0) > 0 and part.get("target") == "features" for part in parts)


def _heads(saved: dict[str, Any], learner: dict[str, Any], trunk_width: int, own_teacher: bool) -> TargetHeads:
    """The heads and centres that `learner` teaches with."""
    config = HeadsConfig(**saved["heads_config"])
    kept = saved["teacher"]
    own = Heads(trunk_width, config)
    heads = TargetHeads(own, config.prototypes)
    followed_another = kept["mode"] == "frozen" or (kept["mode"] == "cotrained" and not own_teacher)
    if followed_another or kept["mode"] == "none":  # nothing of its own was averaged
        own.load_state_dict(learner["heads"])
    if not followed_another:
        heads.load_state_dict(kept["state"]["heads"], strict=kept["mode"] != "none")
    return heads
