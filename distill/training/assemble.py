"""From a recipe to modules: students, teacher, tokenizer and optimisers, all on the CPU and seeded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

import students
from distill.config.schema import Config, StudentConfig
from distill.errors import UserError
from distill.models.joint_heads import Heads
from distill.models.pair import ImageTextModel
from distill.models.tokenizers import Tokenizer, build_tokenizer
from distill.training.distiller import Distiller
from distill.training.learner import Learner, freeze_unused
from distill.training.optim import build_optimizer
from distill.training.spare import Spare
from teachers.base import NoTargets, Teacher
from teachers.cotrained import CotrainedTeacher
from teachers.ema import EmaTeacher
from teachers.ema_head import EmaHeadTeacher, StudentAsTeacher
from teachers.frozen import FrozenTeacher
from teachers.meeting import plan
from teachers.sources import OpenedTeacher, open_teacher
from teachers.targets import TargetHeads


@dataclass
class Assembly:
    """Everything that a run trains or follows."""

    distiller: Distiller
    teacher: Teacher
    tokenizer: Tokenizer
    optimizers: dict[str, Optimizer]  # "students", and "teacher" when it is co-trained
    spares: dict[str, Spare]  # averages of students, by the student's name
    opened: OpenedTeacher | None  # the frozen teacher's source
    feature_width: int | None  # width of regressed features; None for prototype targets
    unused: list[str]  # parameters without gradient because no loss reaches them


def assemble(cfg: Config, captions: Iterable[str]) -> Assembly:
    """Builds a run. `captions` trains the word tokenizer where the recipe asks for one.

    Students are built before anything else and each from its own seed, so that two recipes that differ in the teacher
    start from the same student.
    """
    opened = open_teacher(cfg.teacher.source) if cfg.teacher.mode == "frozen" and cfg.teacher.source else None
    check_teacher(cfg, opened)
    tokenizer = choose_tokenizer(cfg, opened, captions)
    models = [_student(cfg, student, tokenizer, cfg.seed + 1000 * i) for i, student in enumerate(cfg.students)]
    teacher_model = opened.model if opened else _cotrained_model(cfg, tokenizer)
    for model, student in zip(models, cfg.students):
        students.initialise(model, student, cfg, teacher_model)
    width = _feature_width(cfg, models[0], teacher_model)
    learners = {
        student.name: _learner(cfg, model, cfg.objective.patch.tokens, width, cfg.seed + 1000 * i + 1)
        for i, (model, student) in enumerate(zip(models, cfg.students))
    }
    teacher = _teacher(cfg, learners, opened, teacher_model, width)
    for student in cfg.students:
        students.apply_freeze(learners[student.name].model, student.freeze, cfg.text.freeze)
    distiller = Distiller(learners, teacher)
    unused = [f"{name}.{p}" for name, learner in distiller.learners().items() for p in freeze_unused(learner)]
    spares = {s.name: Spare(learners[s.name].model, s.ema) for s in cfg.students if s.ema is not None}
    optimizers = build_optimizers(cfg, distiller)
    return Assembly(distiller, teacher, tokenizer, optimizers, spares, opened, width, unused)


def check_teacher(cfg: Config, opened: OpenedTeacher | None) -> None:
    """Refuses a frozen teacher that cannot give the targets the recipe asks for."""
    if opened is None:
        return
    prototypes = cfg.objective.cls.weight > 0 or (
        cfg.objective.patch.weight > 0 and cfg.objective.patch.target == "prototypes"
    )
    if prototypes and opened.heads is None:
        raise UserError(
            f"teacher.source={opened.source} has no prototype heads. Set objective.patch.target=features and "
            f"objective.cls.weight=0, or use a run trained here."
        )
    if prototypes and opened.prototypes != cfg.heads.prototypes:
        raise UserError(
            f"heads.prototypes={cfg.heads.prototypes}, but the heads of teacher.source={opened.source} have "
            f"{opened.prototypes}. Set heads.prototypes={opened.prototypes}."
        )


def choose_tokenizer(cfg: Config, opened: OpenedTeacher | None, captions: Iterable[str]) -> Tokenizer:
    """The frozen teacher's own tokenizer where its text tower is taken over, else what the recipe names."""
    if opened is not None and cfg.text.init in ("teacher", "selection"):
        return opened.model.tokenizer
    return build_tokenizer(cfg.text, captions)


def _student(cfg: Config, student: StudentConfig, tokenizer: Tokenizer, seed: int) -> ImageTextModel:
    torch.manual_seed(seed)
    return students.build_model(student, cfg, tokenizer)


def _cotrained_model(cfg: Config, tokenizer: Tokenizer) -> ImageTextModel | None:
    if cfg.teacher.mode != "cotrained":
        return None
    assert cfg.teacher.arch is not None
    as_student = StudentConfig(name="teacher", arch=cfg.teacher.arch, depth=cfg.teacher.depth)
    return _student(cfg, as_student, tokenizer, cfg.seed + 500)


def _feature_width(cfg: Config, student: ImageTextModel, teacher: ImageTextModel | None) -> int | None:
    """Width of the features that patches regress, or None for prototype targets."""
    if cfg.objective.patch.target != "features" or cfg.objective.patch.weight == 0:
        return None
    return (teacher or student).image.width


def needs_heads(cfg: Config) -> bool:
    return cfg.objective.cls.weight > 0 or cfg.objective.patch.weight > 0


def _learner(cfg: Config, model: ImageTextModel, tokens: str, width: int | None, seed: int) -> Learner:
    torch.manual_seed(seed)
    heads = Heads(model.image.width, cfg.heads, width) if needs_heads(cfg) else None
    return Learner(model, heads, cfg.objective, tokens, corrupts=cfg.mask.ratio > 0)


def _teacher(
    cfg: Config,
    learners: dict[str, Learner],
    opened: OpenedTeacher | None,
    teacher_model: ImageTextModel | None,
    width: int | None,
) -> Teacher:
    if not needs_heads(cfg):
        return NoTargets(None, cfg.objective)
    first = next(iter(learners.values()))
    prototypes = cfg.heads.prototypes
    if opened is not None:
        heads = opened.heads or TargetHeads(Heads(opened.model.image.width, cfg.heads), prototypes)
        heads = heads.with_feature_norm(width)
        meeting = plan(cfg.views.global_size, first.model.image.patch, opened.facts.patch, cfg.teacher.meet)
        return FrozenTeacher(opened.model, heads, cfg.objective, meeting)
    if cfg.teacher.mode == "cotrained":
        assert teacher_model is not None
        learner = _learner(cfg, teacher_model, cfg.teacher.tokens, width, cfg.seed + 501)
        assert learner.heads is not None
        return CotrainedTeacher(learner, learner.heads, cfg.objective, prototypes, width)
    assert first.heads is not None
    if cfg.teacher.mode == "ema":
        return EmaTeacher(first.model.image, first.heads, cfg.objective, prototypes, width)
    kinds = {"ema_head": EmaHeadTeacher, "none": StudentAsTeacher}
    return kinds[cfg.teacher.mode](first.heads, cfg.objective, prototypes, width)


def build_optimizers(cfg: Config, distiller: Distiller) -> dict[str, Optimizer]:
    """Fresh optimisers over what is trained; needed again when sharding has replaced the parameters."""
    learners = distiller.learners()
    built = {"students": build_optimizer([learners[student.name] for student in cfg.students], cfg.optim)}
    if distiller.teacher_learner is not None:
        built["teacher"] = build_optimizer([distiller.teacher_learner], cfg.optim)
    trained = {name: optimizer for name, optimizer in built.items() if optimizer is not None}
    if not trained:
        raise UserError("Nothing is trained: every tower is frozen. Remove an entry from students.*.freeze.")
    return trained
