"""`train.stage_from`: a run that begins with what another one learnt, such as a short one at high resolution."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.schema import Config
from distill.errors import UserError
from distill.models.loading import entry_of, find_checkpoint, read_checkpoint
from distill.models.source_kinds import split
from distill.models.sources.run import read
from distill.models.tokenizers import Tokenizer, load_tokenizer
from distill.models.tokenizers.words import WordsTokenizer
from distill.training.fingerprint import name_of
from distill.training.learner import Learner
from distill.training.learner_io import load_learner
from students.initialisation import FROM_TEACHER
from teachers.frozen import FrozenTeacher

if TYPE_CHECKING:
    from distill.training.assemble import Assembly


def start_stage(assembly: Assembly, cfg: Config) -> None:
    """Weights, heads, averages and centres of another run, by student name; fresh optimisers, step 0.

    Raises UserError for a missing run or student, other shapes, or weights that would mean something else here.
    """
    source = cfg.train.stage_from
    assert source is not None
    saved = read_stage(source)
    for name in assembly.distiller.students:
        load_student(assembly.distiller.student(name), name, saved, source)
    for name, spare in assembly.spares.items():
        spare.restart(saved["students"][name].get("ema"))
    if saved["teacher"]["mode"] == assembly.teacher.mode and _same_teacher(saved, assembly, cfg):
        if assembly.distiller.teacher_learner is not None:
            load_teacher(assembly.distiller.teacher_learner, saved, source)
        assembly.teacher.load(saved["teacher"]["state"])
    else:  # an average that the first stage did not keep begins as the student it has now
        assembly.teacher.follow(0.0)


def read_stage(source: str | Path) -> dict[str, Any]:
    """The newest checkpoint of the run at `source`. Raises UserError when there is none, and for a model's file."""
    saved = read_checkpoint(find_checkpoint(source))
    if not saved.get("students"):
        raise UserError(
            f"{source} holds a model, no run: train.stage_from needs a run's folder or checkpoint. To start from its "
            f"weights alone use students.*.init={source}."
        )
    return saved


def load_student(learner: Learner, name: str, saved: dict[str, Any], source: str) -> None:
    """Weights and heads of the student `name` of the run `saved`, read from `source`. Raises UserError if none fits."""
    if name not in saved["students"]:
        raise UserError(
            f"train.stage_from={source} has no student '{name}'. It has: {', '.join(saved['students'])}. "
            f"Rename students.*.name to match."
        )
    load_learner(learner, saved["students"][name], f"train.stage_from={source}: student '{name}'")


def load_teacher(learner: Learner, saved: dict[str, Any], source: str) -> None:
    """The same for a co-trained teacher."""
    load_learner(learner, saved["teacher_learner"], f"train.stage_from={source}: its co-trained teacher")


def tokenizer_of(run: str | Path) -> Tokenizer:
    """The tokenizer of a run of ours, or of one of its checkpoints."""
    saved = read_stage(run)
    return load_tokenizer(next(iter(saved["students"].values()))["spec"]["tokenizer"])


def words_of(init: str) -> WordsTokenizer | None:
    """The words that the run or model of ours which `text.init` names was trained with; None for any other start."""
    kind, where = split(init)
    if init in ("scratch", *FROM_TEACHER) or kind != "run":
        return None
    file, content, name = read(where)
    tokenizer = load_tokenizer(entry_of(content, name, str(file))["spec"]["tokenizer"])
    return tokenizer if isinstance(tokenizer, WordsTokenizer) else None


def _same_teacher(saved: dict[str, Any], assembly: Assembly, cfg: Config) -> bool:
    """Whether what a run made for its frozen teacher's targets serves this one's: the same teacher, prepared alike.

    Where it does not, it is made anew. True in every other mode.
    """
    teacher = assembly.teacher
    if not isinstance(teacher, FrozenTeacher):
        return True
    assert assembly.opened is not None
    before = saved["teacher"]
    identity = _identity(assembly.opened.sha256, assembly.opened.source)
    was = _identity(before["sha256"], before["source"])
    then, now = before["state"]["heads"], teacher.state()["heads"]
    shapes = [{name: value.shape for name, value in made.items()} for made in (then, now)]
    return was == identity and shapes[0] == shapes[1] and _prepared_alike(saved["config"], cfg)


def _identity(sha256: str | None, source: str) -> tuple[str | None, str | None]:
    """What tells teachers apart: the hash of the files and which model in them, or the source where there is none."""
    return sha256, name_of(source) if sha256 else source


def _prepared_alike(then: dict[str, Any], cfg: Config) -> bool:
    heads, objective = then["teacher"]["heads"], then["objective"]
    was = (heads["kind"], heads["steps"], heads["entropy"], objective["feature_norm"])
    here = cfg.teacher.heads
    return was == (here.kind, here.steps, here.entropy, cfg.objective.feature_norm)
