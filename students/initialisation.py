"""How a student starts: from scratch, from its teacher or a part of it (layers, selection), or from a saved model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from distill.config.schema import Config, StudentConfig
from distill.errors import UserError
from distill.models.arch import Arch
from distill.models.outline import Outline
from distill.models.pair import ImageTextModel
from distill.models.sources import load
from distill.models.text import TextTower
from distill.models.vision import VisionTower
from students.fitting import check_image, check_text, choose_layers, key_of
from students.selection import select_image, select_text

FROM_TEACHER = ("teacher", "layers", "selection")  # the other starts but scratch are sources
OF_BLOCKS = ("layers", "selection")  # those that choose among its blocks
_SHOWN = 3


def initialise(
    model: ImageTextModel, student: StudentConfig, cfg: Config, teacher: ImageTextModel | None = None
) -> None:
    """Fills `model` as `student.init` (image tower) and `cfg.text.init` (text tower) say, in place.

    `scratch` leaves a tower as built. `teacher` copies the teacher's tower, of the same shape. `layers` (image only)
    copies a teacher of the same width and patch with only the chosen blocks. `selection` takes evenly spaced blocks,
    heads and channels of a larger teacher (see `students.selection`). Anything else is a source of a model whose
    towers are ours (see `distill.models.sources`). The contrastive temperature always starts from the recipe.
    `UserError` when something does not fit (see `students.fitting`).
    """
    if student.init != "scratch":
        source = teacher if student.init in FROM_TEACHER else load(student.init)
        start_image(model.image, student, key_of(student, cfg), source)
    if cfg.text.init != "scratch":
        source = teacher if cfg.text.init in FROM_TEACHER else load(cfg.text.init)
        start_text(model, student.name, cfg.text.init, source)


def apply_freeze(model: ImageTextModel, freeze: Iterable[str], freeze_text: bool = False) -> None:
    """Freezes the towers in `student.freeze`, and the text tower also when `text.freeze` is set."""
    model.freeze({*freeze, *(["text"] if freeze_text else [])})


def start_image(tower: VisionTower, student: StudentConfig, key: str, source: ImageTextModel | Outline | None) -> None:
    """Fills `tower` from `source` (None: there is no teacher) as `student.init` says, which is not scratch.

    `key`: the student's, as `students.0`. Raises `UserError` when it does not fit. On the meta device that is all.
    """
    what = f"{key}.init: {student.init}"
    theirs = _our_tower(what, _need_teacher(what, source).image, tower.gelu)
    check_image(key, student, tower.arch, theirs.arch)
    layers = choose_layers(key, student, tower.depth, theirs.depth) if student.init in OF_BLOCKS else []
    if student.init == "layers":
        weights = _pick_layers(theirs, layers)
    elif student.init == "selection":
        weights = select_image(theirs, tower, layers)
    else:
        weights = theirs.state_dict()
    fix = (
        f"It has patch {theirs.patch}, {theirs.cls_tokens} CLS tokens and vision.position_grid={theirs.position_grid}."
    )
    _copy(tower, weights, f"{what} does not fit student '{student.name}'", fix)


def start_text(model: ImageTextModel, name: str, init: str, source: ImageTextModel | Outline | None) -> None:
    """As `start_image`, for the text tower of the student `name`, as `init` says."""
    what = f"text.init: {init}"
    source = _need_teacher(what, source)
    if not isinstance(source.text, TextTower):
        raise UserError(
            f"{what} has no text tower of ours to copy: use scratch, or a source such as "
            f"tips:VISION.npz+TEXT.npz+TOKENIZER.model."
        )
    if source.tokenizer is None:
        raise UserError(f"{what} comes without its tokenizer: add +TOKENIZER.model to a tips: source.")
    if source.tokenizer.state() != model.tokenizer.state():
        raise UserError(f"{what} has another tokenizer, so its embeddings mean other words: use its tokenizer.")
    check_text(init, name, _text_arch(model.text), _text_arch(source.text))
    weights = select_text(source.text, model.text) if init == "selection" else source.text.state_dict()
    fix = f"That text tower has {source.text.vocabulary:,} tokens: use its tokenizer, or scratch."
    _copy(model.text, weights, f"{what} does not fit student '{name}'", fix)
    model.text.set_norm_eps(source.text.norm_eps)


def _text_arch(text: TextTower) -> Arch:
    """Its shape with the number of layers that it has, rather than its size's."""
    return replace(text.arch, text_layers=text.layers)


def _our_tower(what: str, source: object, gelu: str) -> VisionTower:
    """Refuses weights of a tower that computes something else with them."""
    if not isinstance(source, VisionTower):
        raise UserError(
            f"{what} is not a tower of ours, so its weights mean nothing here: it can teach. To start "
            f"from one use run:, file:, tips:, hf: or timm's TIPSv2."
        )
    if source.gelu != gelu and source.arch.ffn == "gelu":
        raise UserError(f"{what} was trained with vision.gelu={source.gelu}, not {gelu}: set it.")
    return source


def _need_teacher(what: str, teacher: ImageTextModel | Outline | None) -> ImageTextModel | Outline:
    if teacher is None:
        raise UserError(f"{what} needs a teacher model (teacher.mode frozen or cotrained): use scratch or a path.")
    return teacher


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
        raise UserError(f"{what}: {listed}. {fix}")
    tower.load_state_dict(weights)


def _shape(weights: dict[str, Tensor], name: str) -> str:
    return "x".join(map(str, weights[name].shape)) if name in weights else "missing"
