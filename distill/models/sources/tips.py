"""`tips:VISION.npz[+TEXT.npz][+TOKENIZER.model]`: the official TIPS and TIPSv2 files, as a model of ours.

PyTorch and JAX files, every size; which is which, and the variant, follow from the arrays (`distill.models.official`).
The text file and the tokenizer can be left out: then the model has no text tower, or cannot encode texts. In place of
TOKENIZER.model a .json serves that `distill export` wrote for a tokenizer of another kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from distill.errors import UserError
from distill.models import official, official_variants
from distill.models.adapted import AdaptedModel
from distill.models.npz import mismatches, read_arrays, read_shapes
from distill.models.official_variants import Layout
from distill.models.pair import ImageTextModel
from distill.models.positions import sinusoids
from distill.models.sources.base import NO_NORMALISATION, OpenedModel, SourceFacts, count, files_hash
from distill.models.text import TextTower
from distill.models.tokenizers import read_tokenizer
from distill.models.vision import VisionTower

# Of every released model but TIPS g/14 "low resolution", which looks the same from outside. Files of a model of our own
# have its positions' size.
IMAGE_SIZE = 448
LICENCE = "CC-BY-4.0"  # of the released weights, by the README of google-deepmind/tips (its code is Apache-2.0)

Tower = TypeVar("Tower", VisionTower, TextTower)


@dataclass
class _File:
    """One npz file, looked at but not read: the tower it fills, on the meta device."""

    path: Path
    layout: str
    shapes: Mapping[str, tuple[int, ...]]


@dataclass
class _Files:
    image: VisionTower
    vision: _File
    text: TextTower | None
    texts: _File | None
    tokenizer: Path | None

    @property
    def paths(self) -> list[Path]:
        paths = [self.vision.path, self.texts.path if self.texts else None, self.tokenizer]
        return [path for path in paths if path is not None]


def open_source(source: str, where: str) -> OpenedModel:
    """An `ImageTextModel` from vision, text and tokenizer; without one of the latter two an `AdaptedModel`."""
    files = _look(where)
    image, text, temperature = files.image, files.text, 1.0
    _fill(image, files.vision)
    if text is not None and files.texts is not None:
        _fill(text, files.texts)
        text.register_buffer("positions", sinusoids(text.context, text.width), persistent=False)
        name = official.TEMPERATURE[files.texts.layout]
        temperature = float(read_arrays(files.texts.path, [name])[name])
        if temperature <= 0:
            raise UserError(f"{files.texts.path}: {name} is {temperature:g}; a temperature is above 0.")
    tokenizer = None if files.tokenizer is None else read_tokenizer(files.tokenizer)
    facts = _facts(source, files)
    size = facts.image_size
    if text is None or tokenizer is None:
        return OpenedModel(source, AdaptedModel(image, size, text, tokenizer, temperature), facts)
    return OpenedModel(source, ImageTextModel(image, text, tokenizer, temperature, size), facts)


def describe_source(source: str, where: str) -> SourceFacts:
    return _facts(source, _look(where))


def _look(where: str) -> _Files:
    """Finds out what each of the files is, and whether they belong together."""
    found: dict[str, _File] = {}
    tokenizer: Path | None = None
    for path in (Path(part).expanduser() for part in where.split("+") if part):
        if path.suffix in (".model", ".json"):
            if not path.is_file():
                raise UserError(f"No tokenizer file at {path}. Give the path of the released tokenizer.model.")
            tokenizer = path
            continue
        tower, file = _recognised(path)
        if tower in found:
            raise UserError(f"{found[tower].path} and {path} are both {tower} files: give one of each.")
        found[tower] = file
    if "vision" not in found:
        raise UserError(f"tips:{where} has no image tower: write tips:VISION.npz+TEXT.npz+TOKENIZER.model.")
    vision, texts = found["vision"], found.get("text")
    image = _matching(vision, VisionTower)
    text = None if texts is None else _matching(texts, TextTower)
    if text is not None and text.width != image.width:
        raise UserError(
            f"{vision.path} is {image.arch} (width {image.width}), but {texts.path} has width {text.width} "  # type: ignore[union-attr]
            f"({text.arch.size}): give the vision and text files of one variant."
        )
    if text is not None:
        image.arch = text.arch = replace(image.arch, text_layers=text.layers, text_mlp=text.arch.text_mlp)
    return _Files(image, vision, text, texts, tokenizer)


def _recognised(path: Path) -> tuple[str, _File]:
    shapes = read_shapes(path)
    kind: Layout | None = official_variants.recognise(shapes)
    if kind is None:
        first = ", ".join(list(shapes)[:3]) or "nothing"
        raise UserError(
            f"{path} is not a TIPS file: it holds {first}. Give the released *_vision.npz and *_text.npz files."
        )
    return kind.tower, _File(path, kind.layout, shapes)


def _matching(file: _File, kind: type[Tower]) -> Tower:
    """The tower that the file fills, on the meta device; `UserError` that lists the first arrays that do not fit."""
    build = official_variants.vision_tower if kind is VisionTower else official_variants.text_tower
    try:
        tower = build(file.shapes, file.layout)
        expected = {name: tuple(value.shape) for name, value in official.to_official(tower, file.layout).items()}
    except (KeyError, ValueError, IndexError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file.path} is not a whole TIPS file: {reason} is missing or has another shape.") from error
    if kind is TextTower:
        expected[official.TEMPERATURE[file.layout]] = ()
    wrong = mismatches(file.shapes, expected)
    if wrong:
        raise UserError(f"{file.path} does not fit the shape it seems to be, {tower.arch}: {wrong}.")
    assert isinstance(tower, kind)
    return tower


def _fill(tower: VisionTower | TextTower, file: _File) -> None:
    """Reads the weights into a tower on the meta device."""
    rows = official.rows_of(tower, file.layout)
    arrays = read_arrays(file.path, [name for row in rows for name in row.theirs])
    state = official.read_tower(arrays, rows)
    tower.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)


def _facts(source: str, files: _Files) -> SourceFacts:
    image, text = files.image, files.text
    grid = image.position_grid
    variant = official_variants.variant(image.arch, grid)
    if text is None:
        texts = "no text tower: add +TEXT.npz+TOKENIZER.model for tasks with texts"
    elif files.tokenizer is None:
        texts = "a text tower, but no tokenizer: add +TOKENIZER.model for tasks with texts"
    else:
        texts = f"text tower, {text.vocabulary:,} tokens, {text.context} a text"
    return SourceFacts(
        source=source,
        kind="tips",
        where=" + ".join(map(str, files.paths)),
        sha256=files_hash(files.paths),
        licence=LICENCE if variant else None,
        arch=image.arch,
        mean=NO_NORMALISATION[0],
        std=NO_NORMALISATION[1],
        cls_tokens=image.cls_tokens,
        registers=0,
        position_grid=(grid, grid),
        image_size=IMAGE_SIZE if official_variants.released_positions(image.patch, grid) else grid * image.patch,
        image_parameters=count(image),
        text_parameters=count(text),
        texts=texts,
        vocabulary=None if text is None or files.tokenizer is None else text.vocabulary,
        variant=variant,
    )
