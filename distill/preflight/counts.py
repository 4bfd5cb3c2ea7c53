"""Parameters of a recipe's models, counted on the meta device: shapes without memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import nn

from distill.config.schema import Config
from distill.data.sources import open_source, sampled_captions
from distill.models.arch import Arch
from distill.models.pair import ImageTextModel
from distill.models.tokenizers.words import split
from distill.preflight.sketch import SCENE_CAPTIONS, Sketch, sketch_models
from distill.training.learner import Learner
from distill.training.receipts import count
from teachers.heads import describe as describe_heads
from teachers.meeting import Meeting
from teachers.sources import heads_phrase


@dataclass(frozen=True)
class Model:
    """One model of the step; parameters by part. `trained` counts those with gradient."""

    name: str
    role: str  # student, teacher (co-trained) or teacher (frozen)
    arch: Arch
    features: int  # channels of its CLS and patches
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
    spare: int = 0  # of those averaged: the spare averages of students
    teacher: str | None = None  # the frozen teacher, in one line
    meeting: Meeting | None = None  # how its patches meet the students'
    targets: str | None = None  # what gives its targets


def count_models(config: Config) -> Counts:
    """Counts what `config` builds: see `sketch_models`."""
    return count_sketch(config, sketch_models(config))


def count_sketch(config: Config, sketch: Sketch) -> Counts:
    """Counts what was sketched of `config`."""
    opened, learners, notes = sketch.opened, sketch.learners, list(sketch.notes)
    named = [(student.name, "student") for student in config.students]
    named += [("teacher", "teacher (co-trained)")] if config.teacher.mode == "cotrained" else []
    models = [_describe(name, role, learner) for (name, role), learner in zip(named, learners)]
    spare = sum(count(learner.model) for s, learner in zip(config.students, learners) if s.ema is not None)
    untrained = sum(count(learner, False) for learner in learners)
    line = meeting = targets = None
    if opened is not None:
        facts, heads = opened.facts, opened.heads
        sizes = (facts.image_parameters, facts.text_parameters, count(heads))
        row = (facts.arch, facts.features, facts.arch.depth, facts.cls_tokens, *sizes, 0, False, False)
        models.append(Model("teacher", "teacher (frozen)", *row))
        untrained += sum(sizes) + 1  # the temperature
        line = f"{facts.line()}  {heads_phrase(opened.prototypes)}"
        targets = describe_heads(config, opened.kind)
        meeting = opened.meeting
        notes += [facts.missing] if facts.missing else []
    return Counts(
        models=models,
        trained=sum(m.trained for m in models),
        averaged=_averaged(config, learners) + spare,
        frozen=untrained,
        vocabulary=sketch.tokenizer.vocabulary,
        text_tokens=text_tokens(config),
        notes=notes,
        spare=spare,
        teacher=line,
        meeting=meeting,
        targets=targets,
    )


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
    return Model(name, role, image.arch, image.width, image.depth, image.cls_tokens, *sizes, 0, False, False)


def text_tokens(config: Config) -> int:
    """A caption's length in a batch: `text.context`, or on a CPU, which drops what all pad, its longest caption.

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
