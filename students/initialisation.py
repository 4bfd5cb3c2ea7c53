"""How a student starts: from scratch, from its teacher or a part of it (layers, selection), or from a saved model."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor

from distill.config.schema import Config, StudentConfig
from distill.errors import UserError
from distill.models.pair import ImageTextModel
from distill.models.sources import load
from distill.models.text import TextTower
from distill.models.vision import VisionTower
from students.selection import evenly_spaced, select_image, select_text

_SHOWN = 3


def initialise(
    model: ImageTextModel, student: StudentConfig, cfg: Config, teacher: ImageTextModel | None = None
) -> None:
    """Fills `model` as `student.init` (image tower) and `cfg.text.init` (text tower) say, in place.

    `scratch` leaves a tower as built. `teacher` copies the teacher's tower, of the same shape. `layers` (image only)
    copies a teacher of the same width and patch with only the chosen blocks. `selection` takes evenly spaced blocks,
    heads and channels of a larger teacher (see `students.selection`). Anything else is a source of a model whose
    towers are ours (see `distill.models.sources`). The contrastive temperature always starts from the recipe.
    `UserError` when something does not fit.
    """
    _initialise_vision(model.image, student, teacher)
    _initialise_text(model, cfg.text.init, teacher)


def apply_freeze(model: ImageTextModel, freeze: Iterable[str], freeze_text: bool = False) -> None:
    """Freezes the towers in `student.freeze`, and the text tower also when `text.freeze` is set."""
    model.freeze({*freeze, *(["text"] if freeze_text else [])})


def _initialise_vision(tower: VisionTower, student: StudentConfig, teacher: ImageTextModel | None) -> None:
    if student.init == "scratch":
        return
    if student.init in ("teacher", "layers", "selection"):
        source = _need_teacher("students.init", student.init, teacher).image
    else:
        source = load(student.init).image
    _check_tower(source, tower, student.init)
    if student.init == "layers":
        weights = _pick_layers(source, _layers(tower, source, student))
        _copy(tower, weights, "students.init: layers", "Choose an arch of the teacher's width, patch and CLS count.")
    elif student.init == "selection":
        weights = select_image(source, tower, _layers(tower, source, student))
        fix = "Choose the teacher's patch, CLS count and vision.position_grid."
        _copy(tower, weights, "students.init: selection", fix)
    elif student.init == "teacher":
        fix = "For a shallower student of the same width use init: layers."
        _copy(tower, source.state_dict(), "students.init: teacher", fix)
    else:
        fix = f"That model is {source.arch.name}, {source.depth} blocks: use its shape."
        _copy(tower, source.state_dict(), f"students.init: {student.init}", fix)


def _initialise_text(model: ImageTextModel, init: str, teacher: ImageTextModel | None) -> None:
    if init == "scratch":
        return
    from_teacher = init in ("teacher", "selection")
    source = _need_teacher("text.init", init, teacher) if from_teacher else load(init)
    if not isinstance(source.text, TextTower):
        raise UserError(
            f"text.init: {init} has no text tower of ours to copy: use scratch, or a source such as "
            f"tips:VISION.npz+TEXT.npz+TOKENIZER.model."
        )
    if source.tokenizer is None:
        raise UserError(f"text.init: {init} comes without its tokenizer: add +TOKENIZER.model to the source.")
    if source.tokenizer.state() != model.tokenizer.state():
        raise UserError(
            f"text.init: {init} has another tokenizer, so its embeddings mean other words: use its tokenizer."
        )
    model.text.set_norm_eps(source.text.norm_eps)
    if init == "selection":
        _copy(model.text, select_text(source.text, model.text), "text.init: selection", "Choose a smaller arch.")
        return
    fix = f"That text tower has width {source.text.width} and {source.text.layers} layers: use its shape, or scratch."
    _copy(model.text, source.text.state_dict(), f"text.init: {init}", fix)


def _check_tower(source: object, tower: VisionTower, init: str) -> None:
    """Refuses weights of a tower that computes something else with them."""
    if not isinstance(source, VisionTower):
        raise UserError(
            f"students.init: {init} is not a tower of ours, so its weights mean nothing here: it can teach. To start "
            f"from one use run:, file:, tips:, hf: or timm's TIPSv2."
        )
    if source.gelu != tower.gelu and source.arch.ffn == "gelu":
        raise UserError(f"students.init: {init} was trained with vision.gelu={source.gelu}, not {tower.gelu}: set it.")


def _need_teacher(key: str, value: str, teacher: ImageTextModel | None) -> ImageTextModel:
    if teacher is None:
        raise UserError(
            f"{key}: {value} needs a teacher model (teacher.mode frozen or cotrained): use scratch or a path."
        )
    return teacher


def _layers(tower: VisionTower, teacher: VisionTower, student: StudentConfig) -> list[int]:
    """Which blocks of the teacher become the student's: as listed, or evenly spaced ones."""
    key = f"students.init: {student.init}"
    if tower.depth > teacher.depth and not student.layers:
        raise UserError(
            f"{key}: the student has {tower.depth} blocks, the teacher {teacher.depth}: "
            f"set depth to {teacher.depth} or less."
        )
    layers = student.layers or evenly_spaced(teacher.depth, tower.depth)
    if len(layers) != tower.depth:
        raise UserError(
            f"students.layers lists {len(layers)} blocks, the student has {tower.depth}: set depth to match."
        )
    for index in layers:
        if not 0 <= index < teacher.depth:
            raise UserError(f"students.layers: no block {index}; the teacher has 0 to {teacher.depth - 1}.")
    return layers


def _pick_layers(teacher: VisionTower, layers: list[int]) -> dict[str, Tensor]:
    """The teacher's weights under the student's names: the chosen blocks renumbered, all else as it is."""
    source = teacher.state_dict()
    picked = {key: value for key, value in source.items() if not key.startswith("trunk.blocks.")}
    for target, index in enumerate(layers):
        prefix = f"trunk.blocks.{index}."
        block = {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)}
        picked |= {f"trunk.blocks.{target}.{key}": value for key, value in block.items()}
    return picked


@torch.no_grad()
def _copy(tower: VisionTower | TextTower, weights: dict[str, Tensor], what: str, fix: str) -> None:
    """Loads `weights` into `tower`, or raises a `UserError` that names the first tensors that differ."""
    own = tower.state_dict()
    names = sorted(own.keys() | weights.keys())
    wrong = (n for n in names if n not in own or n not in weights or own[n].shape != weights[n].shape)
    first = list(islice(wrong, _SHOWN))
    if first:
        listed = "; ".join(f"{n} is {_shape(own, n)} here, {_shape(weights, n)} there" for n in first)
        raise UserError(f"{what} does not fit: {listed}. {fix}")
    tower.load_state_dict(weights)


def _shape(weights: dict[str, Tensor], name: str) -> str:
    return "x".join(map(str, weights[name].shape)) if name in weights else "missing"
