"""From a recipe to modules: students, teacher, tokenizer and optimisers, all on the CPU and seeded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import Optimizer

import students
from distill.config.schema import Config, StudentConfig
from distill.errors import UserError
from distill.models.joint_heads import Heads
from distill.models.pair import ImageTextModel
from distill.models.tokenizers import Tokenizer, build_tokenizer
from distill.models.tokenizers.words import WordsTokenizer
from distill.training.distiller import Distiller
from distill.training.learner import Learner, freeze_unused
from distill.training.optim import build_optimizer
from distill.training.spare import Spare
from distill.training.stage import tokenizer_of, words_of
from teachers.base import NoTargets, Teacher
from teachers.cotrained import CotrainedTeacher
from teachers.ema import EmaTeacher
from teachers.ema_head import EmaHeadTeacher, StudentAsTeacher
from teachers.frozen import FrozenTeacher
from teachers.heads import feature_widths, settle
from teachers.heads.fitted import FittedHeads
from teachers.heads.own import check_heads
from teachers.meeting import plan
from teachers.sources import OpenedTeacher, open_teacher
from teachers.targets import TargetHeads

APART = 100_000  # between the seeds of a frozen teacher's run and of its students


@dataclass
class Assembly:
    """Everything that a run trains or follows."""

    distiller: Distiller
    teacher: Teacher
    tokenizer: Tokenizer
    optimizers: dict[str, Optimizer]  # "students", and "teacher" when it is co-trained
    spares: dict[str, Spare]  # averages of students, by the student's name
    opened: OpenedTeacher | None  # the frozen teacher's source
    unused: list[str]  # parameters without gradient because no loss reaches them


def assemble(cfg: Config, captions: Iterable[str], resumed: Path | None = None) -> Assembly:
    """Builds a run. `captions` trains the word tokenizer where the recipe asks for one, and no earlier run has it.

    `resumed`: the checkpoint that the run will be put back to; students then stay as built until it is.

    Students are built before anything else and each from its own seed, so that two recipes that differ in the frozen
    teacher start from the same student, and so do two that train without one.
    """
    opened = open_teacher(cfg.teacher.source) if cfg.teacher.mode == "frozen" and cfg.teacher.source else None
    settle(cfg, has_heads=opened is not None and opened.heads is not None)
    kind = check_heads(cfg, opened.source, opened.own) if opened else None
    tokenizer = choose_tokenizer(cfg, opened, captions, resumed)
    models = [_student(cfg, student, tokenizer, student_seed(cfg, i)) for i, student in enumerate(cfg.students)]
    teacher_model = opened.model if opened else _cotrained_model(cfg, tokenizer)
    if resumed is None:  # else its checkpoint has the weights, and what they began with may not be there any more
        for model, student in zip(models, cfg.students):
            students.initialise(model, student, cfg, teacher_model)
    widths = feature_widths(cfg, (teacher_model or models[0]).image.width)
    learners = {
        student.name: _learner(cfg, model, cfg.objective.patch.tokens, widths, student_seed(cfg, i) + 1)
        for i, (model, student) in enumerate(zip(models, cfg.students))
    }
    if opened is not None and needs_heads(cfg):
        teacher: Teacher = _frozen(cfg, opened, kind, models[0].image.patch, widths)
    else:
        teacher = _teacher(cfg, learners, teacher_model, widths)
    for student in cfg.students:
        students.apply_freeze(learners[student.name].model, student.freeze, cfg.text.freeze)
    distiller = Distiller(learners, teacher)
    unused = [f"{name}.{p}" for name, learner in distiller.learners().items() for p in freeze_unused(learner)]
    spares = {s.name: Spare(learners[s.name].model, s.ema) for s in cfg.students if s.ema is not None}
    optimizers = build_optimizers(cfg, distiller)
    return Assembly(distiller, teacher, tokenizer, optimizers, spares, opened, unused)


def student_seed(cfg: Config, place: int) -> int:
    """The seed of the weights that the student at `place` in the recipe starts from.

    With a frozen teacher it is far from `cfg.seed`: the teacher may be a run with the same seed, and a student that
    began where its teacher did, and sees the same images, would stay near it for a reason other than its targets.
    """
    return cfg.seed + 1000 * place + (APART if cfg.teacher.mode == "frozen" else 0)


def choose_tokenizer(
    cfg: Config, opened: OpenedTeacher | None, captions: Iterable[str], resumed: Path | None
) -> Tokenizer:
    """What the recipe names; but a text tower brings its own: a frozen teacher's, or the words of an earlier run.

    That is the run that is `resumed`, or else its first stage, or else the one that `text.init` names. Raises UserError
    where captions are contrasted and the earlier run had none, so that it knows no word.
    """
    earlier = resumed or cfg.train.stage_from
    own = opened.model.tokenizer if opened is not None and cfg.text.init in ("teacher", "selection") else None
    if opened is not None and own is not None:
        found, where = own, opened.source
    elif earlier is not None and cfg.text.tokenizer == "words":
        found, where = tokenizer_of(earlier), str(earlier)
    elif cfg.text.tokenizer == "words" and (words := words_of(cfg.text.init)) is not None:
        found, where = words, cfg.text.init
    else:
        return build_tokenizer(cfg.text, captions, needed=cfg.objective.contrastive.weight != 0)
    check_words(cfg, found, where)
    return found


def check_words(cfg: Config, tokenizer: Tokenizer, where: str) -> None:
    """Raises UserError where captions are contrasted and the `tokenizer` of an earlier run, `where`, knows no word."""
    if cfg.objective.contrastive.weight != 0 and isinstance(tokenizer, WordsTokenizer) and not tokenizer.words:
        raise UserError(
            f"{where} was trained without captions: its word tokenizer knows no word, so no caption can be told from "
            "another. Set objective.contrastive.weight=0, or train it again with text.tokenizer=clip."
        )


def _student(cfg: Config, student: StudentConfig, tokenizer: Tokenizer, seed: int) -> ImageTextModel:
    torch.manual_seed(seed)
    return students.build_model(student, cfg, tokenizer)


def _cotrained_model(cfg: Config, tokenizer: Tokenizer) -> ImageTextModel | None:
    if cfg.teacher.mode != "cotrained":
        return None
    assert cfg.teacher.arch is not None
    as_student = StudentConfig(name="teacher", arch=cfg.teacher.arch, depth=cfg.teacher.depth)
    return _student(cfg, as_student, tokenizer, cfg.seed + 500)


def needs_heads(cfg: Config) -> bool:
    return cfg.objective.cls.weight > 0 or cfg.objective.patch.weight > 0


def _learner(
    cfg: Config, model: ImageTextModel, tokens: str, widths: tuple[int | None, int | None], seed: int
) -> Learner:
    torch.manual_seed(seed)
    heads = Heads(model.image.width, cfg.heads, *widths) if needs_heads(cfg) else None
    return Learner(model, heads, cfg.objective, tokens, corrupts=cfg.mask.ratio > 0)


def _frozen(
    cfg: Config, opened: OpenedTeacher, kind: str | None, patch: int, widths: tuple[int | None, int | None]
) -> FrozenTeacher:
    """The frozen teacher with heads of `kind`, still to be made unless its own; `patch` is the students'."""
    width, prototypes = opened.model.image.width, cfg.heads.prototypes
    torch.manual_seed(cfg.seed + 2000)
    heads = {
        "own": lambda: opened.heads,
        "fitted": lambda: TargetHeads(FittedHeads(width, prototypes, cfg.heads.tied), prototypes),
        "trained": lambda: TargetHeads(Heads(width, cfg.heads), prototypes),
        None: lambda: TargetHeads(None, prototypes),
    }[kind]()
    assert heads is not None
    heads.with_norms(*widths, cfg.objective.feature_norm)
    meeting = plan(cfg.views.global_size, patch, opened.facts.patch, cfg.teacher.meet)
    return FrozenTeacher(opened.model, heads, cfg.objective, meeting, kind)


def _teacher(
    cfg: Config,
    learners: dict[str, Learner],
    teacher_model: ImageTextModel | None,
    widths: tuple[int | None, int | None],
) -> Teacher:
    """A teacher made of what is trained."""
    if not needs_heads(cfg):
        return NoTargets(None, cfg.objective)
    first = next(iter(learners.values()))
    prototypes = cfg.heads.prototypes
    if cfg.teacher.mode == "cotrained":
        assert teacher_model is not None
        learner = _learner(cfg, teacher_model, cfg.teacher.tokens, widths, cfg.seed + 501)
        assert learner.heads is not None
        return CotrainedTeacher(learner, learner.heads, cfg.objective, prototypes, *widths)
    assert first.heads is not None
    if cfg.teacher.mode == "ema":
        return EmaTeacher(first.model.image, first.heads, cfg.objective, prototypes, *widths)
    kinds = {"ema_head": EmaHeadTeacher, "none": StudentAsTeacher}
    return kinds[cfg.teacher.mode](first.heads, cfg.objective, prototypes, *widths)


def build_optimizers(cfg: Config, distiller: Distiller) -> dict[str, Optimizer]:
    """Fresh optimisers over what is trained; needed again when sharding has replaced the parameters."""
    learners = distiller.learners()
    fused = cfg.train.precision != "fp16"
    built = {"students": build_optimizer([learners[student.name] for student in cfg.students], cfg.optim, fused)}
    if distiller.teacher_learner is not None:
        built["teacher"] = build_optimizer([distiller.teacher_learner], cfg.optim, fused)
    trained = {name: optimizer for name, optimizer in built.items() if optimizer is not None}
    if not trained:
        raise UserError("Nothing is trained: every tower is frozen. Remove an entry from students.*.freeze.")
    return trained
