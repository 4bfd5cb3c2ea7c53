"""What students start from, compared with them before any weights are read, by the code that a run starts them with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from distill.config.fields import MISSING
from distill.config.schema import Config
from distill.errors import UserError
from distill.models.outline import Outline, outline
from distill.models.pair import ImageTextModel
from distill.models.sources import SourceFacts, describe
from distill.models.sources.hub import NotHere
from distill.models.text import TextTower
from distill.models.tokenizers import load_tokenizer
from distill.models.tokenizers.words import WordsTokenizer
from distill.preflight.sketch import OnlySize, Sketch
from distill.training.stage import load_student, load_teacher, read_stage
from students.initialisation import FROM_TEACHER, start_image, start_text

AS_BUILT = ("scratch", MISSING)


def look_at_starts(config: Config, sketch: Sketch | None) -> tuple[list[str], list[str]]:
    """Warnings and problems of `students.*.init`, `text.init` and `train.stage_from`.

    A source that is not there is a problem, or a warning when a registry will supply it. `sketch` None: the models
    could not be made, so nothing is compared with them.
    """
    sources, warnings, problems = _describe(config)
    if sketch is not None:
        problems += dict.fromkeys(_misfits(config, sketch, sources))
    return warnings, problems + list(_stage(config, sketch))


def _describe(config: Config) -> tuple[dict[str, SourceFacts], list[str], list[str]]:
    """The sources that can be looked at, by what a recipe calls them; warnings and problems of the others."""
    named = {f"students.{i}.init": student.init for i, student in enumerate(config.students)}
    named["text.init"] = config.text.init
    found: dict[str, SourceFacts] = {}
    warnings: list[str] = []
    problems: list[str] = []
    for key, source in named.items():
        if source in (*AS_BUILT, *FROM_TEACHER):
            continue
        try:
            found[source] = facts = found.get(source) or describe(source)
            warnings += [f"{key}: {facts.missing}"] if facts.missing else []
        except NotHere as error:
            warnings.append(f"{key}: {error}")
        except UserError as error:
            problems.append(f"{key}: {error}")
    return found, warnings, problems


def _misfits(config: Config, sketch: Sketch, sources: dict[str, SourceFacts]) -> Iterator[str]:
    """What a run would refuse to start students from. What is still to be given, or not there, is left out."""
    for i, (student, learner) in enumerate(zip(config.students, sketch.learners)):
        model = learner.model
        try:
            if (source := _source(student.init, config, sketch, sources, model)) is not None:
                start_image(model.image, student, f"students.{i}", source)
        except UserError as error:
            yield str(error)
        try:
            if (source := _source(config.text.init, config, sketch, sources, model)) is not None:
                start_text(model, student.name, config.text.init, _with_its_words(source, model, config))
        except UserError as error:
            yield str(error)


def _source(
    init: str, config: Config, sketch: Sketch, sources: dict[str, SourceFacts], model: ImageTextModel
) -> ImageTextModel | Outline | None:
    """What `init` starts `model` from, on the meta device."""
    facts = sources.get(init)
    if init in FROM_TEACHER:
        if config.teacher.mode == "cotrained":
            return sketch.learners[-1].model
        facts = None if sketch.opened is None else sketch.opened.facts
    return None if facts is None else outline(facts, model)


def _with_its_words(
    source: ImageTextModel | Outline, model: ImageTextModel, config: Config
) -> ImageTextModel | Outline:
    """`source` with the tokenizer of `model` where that is known only when a run starts: they are taken to agree.

    Words that are still to be counted can be those of another model of words alone.
    """
    if not isinstance(model.tokenizer, OnlySize) or source.tokenizer is None or not isinstance(source.text, TextTower):
        return source
    counted = config.text.tokenizer == "words" and config.text.init not in FROM_TEACHER
    if counted and not isinstance(source.tokenizer, WordsTokenizer):
        return source
    with torch.device("meta"):
        text = TextTower.from_config(source.text.config() | {"vocabulary": model.text.vocabulary})
    return Outline(source.image, text, model.tokenizer)


def _stage(config: Config, sketch: Sketch | None) -> Iterator[str]:
    """What a run would refuse to go on from."""
    source = config.train.stage_from
    if source is None or source == MISSING:
        return
    try:
        saved = _shapes(read_stage(source))
    except UserError as error:
        yield f"train.stage_from: {error}"
        return
    if sketch is None:
        return
    for student, learner in zip(config.students, sketch.learners):
        entry = saved["students"].get(student.name)
        if entry is not None and config.teacher.mode == "frozen" and sketch.opened is None:
            entry["heads"] = None  # not compared: some have the width of a teacher that is not known yet
        if entry is not None and isinstance(learner.model.tokenizer, OnlySize):
            learner.model.tokenizer = load_tokenizer(entry["spec"]["tokenizer"])  # a frozen teacher's, by its size
        try:
            load_student(learner, student.name, saved, source)
        except UserError as error:
            yield str(error)
    if config.teacher.mode == saved["teacher"]["mode"] == "cotrained":
        try:
            load_teacher(sketch.learners[-1], saved, source)
        except UserError as error:
            yield str(error)


def _shapes(tree: Any) -> Any:
    """A checkpoint's content, of tensors only the shapes."""
    if isinstance(tree, dict):
        return {key: _shapes(value) for key, value in tree.items()}
    return tree.to("meta") if isinstance(tree, torch.Tensor) else tree
