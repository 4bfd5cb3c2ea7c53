"""What a recipe builds, on the meta device: shapes without memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import students
from distill.config.fields import MISSING
from distill.config.schema import Config, StudentConfig
from distill.data.captions import caption_fields
from distill.data.sources import caption_texts, open_source
from distill.errors import UserError
from distill.models.joint_heads import Heads
from distill.models.sources import SourceFacts, describe
from distill.models.sources.hub import NotHere
from distill.models.tokenizers import build_tokenizer
from distill.training.assemble import check_words
from distill.training.learner import Learner, freeze_unused
from distill.training.stage import tokenizer_of, words_of
from teachers.heads import feature_widths, settle
from teachers.heads.fitted import FittedHeads
from teachers.heads.own import check_heads
from teachers.meeting import Meeting, plan
from teachers.sources import teacher_heads

ASSUMED_VOCABULARY = 32_000  # where the tokenizer is still to be given: the paper's
SCENE_CAPTIONS = 500  # scenes looked at for the words of their captions


class OnlySize:
    """Stands for a tokenizer of which only the size is known, or assumed."""

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def state(self) -> dict[str, Any]:
        return {"kind": "only size"}


@dataclass(frozen=True)
class Frozen:
    """A frozen teacher, described without its weights."""

    facts: SourceFacts
    heads: nn.Module | None  # on the meta device
    prototypes: int  # of its own heads, 0 without
    kind: str | None  # where its prototypes come from
    meeting: Meeting


@dataclass(frozen=True)
class Sketch:
    """The learners of a run, the students' first, then a co-trained teacher's."""

    learners: list[Learner]
    tokenizer: Any  # a `Tokenizer` or `OnlySize`
    opened: Frozen | None  # the frozen teacher, where there is one, given and here
    notes: list[str]


def sketch_models(config: Config) -> Sketch:
    """Builds what `config` does. Open values (`???`) are assumed, and noted. Raises `UserError` for bad files.

    As in a run, what is `auto` in `config` is settled.
    """
    notes: list[str] = []
    frozen = config.teacher.mode == "frozen"
    if not frozen:
        settle(config, has_heads=False)
    opened = _frozen_teacher(config, notes) if frozen else None
    tokenizer = _tokenizer(config, opened, notes)
    widths = feature_widths(config, _teacher_width(config, opened))
    tokens = config.objective.patch.tokens
    learners = [_learner(student, config, tokenizer, tokens, widths) for student in config.students]
    if config.teacher.mode == "cotrained":
        assert config.teacher.arch is not None
        teacher = StudentConfig(name="teacher", arch=config.teacher.arch, depth=config.teacher.depth)
        learners.append(_learner(teacher, config, tokenizer, config.teacher.tokens, widths))
    return Sketch(learners, tokenizer, opened, notes)


def _teacher_width(config: Config, opened: Frozen | None) -> int:
    """Channels of the features that are regressed, as in a run; a student's where the teacher is still to be given."""
    if opened is not None:
        return opened.facts.features
    arch = config.teacher.arch if config.teacher.mode == "cotrained" else None
    return students.parse_arch(arch or config.students[0].arch).width


def _learner(
    student: StudentConfig, config: Config, tokenizer: Any, tokens: str, widths: tuple[int | None, int | None]
) -> Learner:
    objective = config.objective
    model = students.build_model(student, config, tokenizer, device="meta")
    with torch.device("meta"):
        distils = objective.cls.weight + objective.patch.weight > 0
        heads = Heads(model.image.width, config.heads, *widths) if distils else None
        learner = Learner(model, heads, objective, tokens, corrupts=config.mask.ratio > 0)
    if student in config.students:
        students.apply_freeze(model, student.freeze, config.text.freeze)
    freeze_unused(learner)
    return learner


def _tokenizer(config: Config, opened: Frozen | None, notes: list[str]) -> Any:
    """As `choose_tokenizer` of a run; only its size where no more is known, as of words still to be counted."""
    text, taken = config.text, opened.facts.vocabulary if opened is not None else None
    if taken is not None and text.init in ("teacher", "selection"):
        return OnlySize(taken)
    earlier = config.train.stage_from
    if earlier is not None and earlier != MISSING and text.tokenizer in ("words", MISSING):
        words = None
        with contextlib.suppress(UserError):  # told where starts are looked at
            words = tokenizer_of(earlier)
        if words is not None:
            check_words(config, words, earlier)
            return words
    if text.tokenizer == "words":
        words = None
        with contextlib.suppress(UserError):  # as above
            words = words_of(text.init)
        if words is not None:
            check_words(config, words, text.init)
            return words
    if text.tokenizer == MISSING:
        notes.append(f"text.tokenizer is still to be given: {ASSUMED_VOCABULARY:,} tokens are assumed")
        return OnlySize(ASSUMED_VOCABULARY)
    if text.tokenizer != "words":
        return build_tokenizer(text, [])
    if config.data.source == "scenes":
        captions = caption_texts(open_source(config.data), caption_fields(config.captions), SCENE_CAPTIONS)
        return OnlySize(build_tokenizer(text, captions).vocabulary)
    notes.append(f"words of captions are counted when the run starts: text.vocabulary={text.vocabulary} is assumed")
    return OnlySize(text.vocabulary)


def _frozen_teacher(config: Config, notes: list[str]) -> Frozen | None:
    source = config.teacher.source
    if source is None or source == MISSING:
        notes.append("the frozen teacher is still to be given: it is not counted")
        return None
    own = teacher_heads(source)
    sizes = None if own is None else own.sizes
    prototypes = 0 if sizes is None else sizes.prototypes
    kind = check_heads(config, source, own)
    try:
        facts = describe(source)
    except NotHere as error:
        notes.append(f"{error} Until then the teacher is not counted.")
        return None
    with torch.device("meta"):
        heads: nn.Module | None = None
        if kind == "fitted":
            heads = FittedHeads(facts.features, config.heads.prototypes, config.heads.tied)
        elif kind is not None:
            heads = Heads(facts.features, sizes if kind == "own" and sizes is not None else config.heads)
    patch = students.parse_arch(config.students[0].arch).patch
    meeting = plan(config.views.global_size, patch, facts.patch, config.teacher.meet)
    return Frozen(facts, heads, prototypes, kind, meeting)
