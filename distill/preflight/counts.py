"""Parameters of a recipe's models, counted on the meta device: shapes without memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import students
from distill.config.fields import MISSING
from distill.config.schema import Config, StudentConfig
from distill.data.sources import caption_texts, open_source, sampled_captions
from distill.models.arch import Arch
from distill.models.joint_heads import Heads
from distill.models.pair import ImageTextModel
from distill.models.sources import SourceFacts, describe
from distill.models.tokenizers import build_tokenizer
from distill.models.tokenizers.words import split
from distill.training.learner import Learner, freeze_unused
from distill.training.receipts import count
from teachers.heads import describe as describe_heads
from teachers.heads import feature_widths, settle
from teachers.heads.fitted import FittedHeads
from teachers.heads.own import check_heads
from teachers.meeting import Meeting, plan
from teachers.sources import heads_phrase, teacher_heads

ASSUMED_VOCABULARY = 32_000  # where the tokenizer is still to be given: the paper's
SCENE_CAPTIONS = 500  # scenes looked at for the words of their captions


@dataclass(frozen=True)
class Model:
    """One model of the step; parameters by part. `trained` counts those with gradient."""

    name: str
    role: str  # student, teacher (co-trained) or teacher (frozen)
    arch: Arch
    depth: int
    cls_tokens: int
    image: int
    text: int
    heads: int
    trained: int
    trains_image: bool
    trains_text: bool


@dataclass(frozen=True)
class Counts:
    """All models, and how many parameters are trained, averaged and frozen in all."""

    models: list[Model]
    trained: int
    averaged: int
    frozen: int
    vocabulary: int
    text_tokens: int  # a caption's length in a batch, padding included: the context, or what a CPU trims it to
    notes: list[str]
    teacher: str | None = None  # the frozen teacher, in one line
    meeting: Meeting | None = None  # how its patches meet the students'
    targets: str | None = None  # what gives its targets


class _OnlySize:
    """Stands for a tokenizer where only its size matters."""

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary


def count_models(config: Config) -> Counts:
    """Counts what `config` builds. Open values (`???`) are assumed, and noted. Raises `UserError` for bad files."""
    notes: list[str] = []
    frozen = config.teacher.mode == "frozen"
    if not frozen:
        settle(config, has_heads=False)
    opened = _frozen_teacher(config, notes) if frozen else None
    taken = opened.facts.vocabulary if opened is not None and config.text.init == "teacher" else None
    tokenizer: Any = _OnlySize(taken or _vocabulary(config, notes))
    given = [(student, config.objective.patch.tokens, "student") for student in config.students]
    if config.teacher.mode == "cotrained":
        assert config.teacher.arch is not None
        teacher = StudentConfig(name="teacher", arch=config.teacher.arch, depth=config.teacher.depth)
        given.append((teacher, config.teacher.tokens, "teacher (co-trained)"))
    models: list[Model] = []
    learners: list[Learner] = []
    for student, tokens, role in given:
        learner = _learner(student, config, tokenizer, tokens, opened, learners)
        learners.append(learner)
        models.append(_describe(student.name, role, learner))
    averaged = _averaged(config, learners)
    averaged += sum(count(learner.model) for s, learner in zip(config.students, learners) if s.ema is not None)
    untrained = sum(count(learner, False) for learner in learners)
    line = meeting = targets = None
    if opened is not None:
        facts, heads = opened.facts, opened.heads
        sizes = (facts.image_parameters, facts.text_parameters, count(heads))
        row = (facts.arch, facts.arch.depth, facts.cls_tokens, *sizes, 0, False, False)
        models.append(Model("teacher", "teacher (frozen)", *row))
        untrained += sum(sizes) + 1  # the temperature
        line = f"{facts.line()}  {heads_phrase(opened.prototypes)}"
        targets = describe_heads(config, opened.kind)
        meeting = opened.meeting
        notes += [facts.missing] if facts.missing else []
    trained = sum(m.trained for m in models)
    length = _text_tokens(config)
    return Counts(models, trained, averaged, untrained, tokenizer.vocabulary, length, notes, line, meeting, targets)


def _learner(
    student: StudentConfig,
    config: Config,
    tokenizer: Any,
    tokens: str,
    opened: _Frozen | None,
    before: list[Learner],
) -> Learner:
    objective = config.objective
    model = students.build_model(student, config, tokenizer, device="meta")
    widths = feature_widths(
        config, opened.facts.arch.width if opened else (before[0].model if before else model).image.width
    )
    with torch.device("meta"):
        distils = objective.cls.weight + objective.patch.weight > 0
        heads = Heads(model.image.width, config.heads, *widths) if distils else None
        learner = Learner(model, heads, objective, tokens, corrupts=config.mask.ratio > 0)
    if student in config.students:
        students.apply_freeze(model, student.freeze, config.text.freeze)
    freeze_unused(learner)
    return learner


def _averaged(config: Config, learners: list[Learner]) -> int:
    if config.teacher.mode not in ("ema", "ema_head", "cotrained"):
        return 0
    source = learners[-1 if config.teacher.mode == "cotrained" else 0]
    if source.heads is None:
        return 0
    return count(source.heads) + (count(source.model.image) if config.teacher.mode == "ema" else 0)


def _describe(name: str, role: str, learner: Learner) -> Model:
    row = _row(name, role, learner.model, learner.heads)
    trains = [any(p.requires_grad for p in tower.parameters()) for tower in (learner.model.image, learner.model.text)]
    return Model(**{**vars(row), "trained": count(learner, True), "trains_image": trains[0], "trains_text": trains[1]})


def _row(name: str, role: str, model: ImageTextModel, heads: nn.Module | None) -> Model:
    image = model.image
    sizes = (count(image), count(model.text), count(heads))
    return Model(name, role, image.arch, image.depth, image.cls_tokens, *sizes, 0, False, False)


def _vocabulary(config: Config, notes: list[str]) -> int:
    text = config.text
    if text.tokenizer == MISSING:
        notes.append(f"text.tokenizer is still to be given: {ASSUMED_VOCABULARY:,} tokens are assumed")
        return ASSUMED_VOCABULARY
    if text.tokenizer != "words":
        return build_tokenizer(text, []).vocabulary
    if config.data.source == "scenes":
        fields = config.captions.cls1 + config.captions.cls2
        return build_tokenizer(text, caption_texts(open_source(config.data), fields, SCENE_CAPTIONS)).vocabulary
    notes.append(f"words of captions are counted when the run starts: text.vocabulary={text.vocabulary} is assumed")
    return text.vocabulary


def _text_tokens(config: Config) -> int:
    """`text.context`, or on a CPU, which drops what is padding in the whole batch, the batch's longest caption.

    That is known for scenes and the word tokenizer alone: the mean over CLS tokens of the quantile 1 - 1 / batch.
    """
    text, batch = config.text, config.train.batch // config.train.accumulate // config.train.devices
    if config.train.accelerator != "cpu" or config.data.source != "scenes" or text.tokenizer != "words":
        return text.context
    captions = sampled_captions(open_source(config.data), SCENE_CAPTIONS)
    lengths: dict[str, list[int]] = {}
    for record in captions:
        for field, texts in record.items():
            lengths.setdefault(field, []).extend(len(split(text)) for text in texts)
    slots = [fields for fields in (config.captions.cls1, config.captions.cls2) if fields]
    longest = [
        np.quantile([n for field in slot for n in lengths.get(field, [text.context])], 1 - 1 / (batch + 1))
        for slot in slots
    ]
    return min(text.context, math.ceil(float(np.mean(longest))))


@dataclass(frozen=True)
class _Frozen:
    """A frozen teacher, described without its weights."""

    facts: SourceFacts
    heads: nn.Module | None  # on the meta device
    prototypes: int  # of its own heads, 0 without
    kind: str | None  # where its prototypes come from
    meeting: Meeting


def _frozen_teacher(config: Config, notes: list[str]) -> _Frozen | None:
    source = config.teacher.source
    if source is None or source == MISSING:
        notes.append("the frozen teacher is still to be given: it is not counted")
        return None
    facts = describe(source)
    own = teacher_heads(source)
    sizes = None if own is None else own.sizes
    prototypes = 0 if sizes is None else sizes.prototypes
    kind = check_heads(config, source, own)
    with torch.device("meta"):
        heads: nn.Module | None = None
        if kind == "fitted":
            heads = FittedHeads(facts.arch.width, config.heads.prototypes, config.heads.tied)
        elif kind is not None:
            heads = Heads(facts.arch.width, sizes if kind == "own" and sizes is not None else config.heads)
    patch = students.parse_arch(config.students[0].arch).patch
    meeting = plan(config.views.global_size, patch, facts.patch, config.teacher.meet)
    return _Frozen(facts, heads, prototypes, kind, meeting)
