"""What a source of a model gives: the model, and the facts that are said of it in one line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from distill.errors import UserError
from distill.models.adapted import AdaptedModel
from distill.models.arch import Arch
from distill.models.pair import ImageTextModel

NO_NORMALISATION = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
QUICK_GELU = "QuickGELU"  # x * sigmoid(1.702 x), which CLIP's first weights were trained with

OURS = ("run", "file", "tips", "hf")  # kinds whose towers are always ours, of a size that has a name

Model = ImageTextModel | AdaptedModel


@dataclass(frozen=True)
class SourceFacts:
    """What is known of a source, with or without its weights.

    `sha256` is of the file or files the weights come from; None where they are not on this machine. `missing` says in
    one sentence what is not here and how to supply it; None when the source can be opened.
    """

    source: str
    kind: str
    where: str  # file, folder or registry
    sha256: str | None
    licence: str | None
    arch: Arch
    mean: tuple[float, ...]  # of the three channels, subtracted inside the image tower
    std: tuple[float, ...]
    cls_tokens: int
    registers: int  # tokens besides CLS and patches that the model drops
    position_grid: tuple[int, int] | None  # None: positions are not learned on a grid (rotary)
    image_size: int  # pixels that it was trained at or is best used at
    image_parameters: int
    text_parameters: int
    texts: str  # what it can do with texts, for people
    missing: str | None = None
    vocabulary: int | None = None  # of the tokenizer, where a student could take it over
    projected: int | None = None  # channels that CLS and patches are projected to; None: they keep the trunk's width
    variant: str | None = None  # the released TIPS model it is, such as "TIPSv2 L/14"
    notes: tuple[str, ...] = ()  # what else is special about it, for people

    @property
    def parameters(self) -> int:
        return self.image_parameters + self.text_parameters

    @property
    def patch(self) -> int:
        return self.arch.patch

    @property
    def features(self) -> int:
        """Channels of CLS and patches as the model gives them; `arch` is of the trunk."""
        return self.projected or self.arch.width

    def line(self) -> str:
        """Source, hash, licence, normalisation, token layout, grid, parameters and notes, in one line."""
        parts = [
            self.source,
            f"sha256 {self.sha256[:12]}" if self.sha256 else "weights not here",
            f"licence {self.licence or 'unknown'}",
            self.variant or (str(self.arch) if self.kind in OURS else self.arch.size),
            self._normalisation(),
            self._tokens(),
            self._positions(),
            f"{self.image_size} px",
            f"{self.image_parameters / 1e6:,.1f} M image + {self.text_parameters / 1e6:,.1f} M text parameters",
            self.texts,
            *self.notes,
        ]
        return "  ".join(parts)

    def _normalisation(self) -> str:
        if (self.mean, self.std) == NO_NORMALISATION:
            return "input [0, 1], no normalisation"
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"input [0, 1] normalised by mean {mean}, std {std}"

    def _tokens(self) -> str:
        registers = f" + {self.registers} registers" if self.registers else ""
        return f"{self.cls_tokens} CLS{registers} + patches of {self.patch} px"

    def _positions(self) -> str:
        return "rotary positions" if self.position_grid is None else f"position grid {_times(self.position_grid)}"


class Trained(NamedTuple):
    """What weights of one shape can differ in, and only their tag says."""

    mean: tuple[float, ...]  # of the three channels
    std: tuple[float, ...]
    quick_gelu: bool


def need_tag(source: str, name: str, by_tag: Mapping[str, Trained], form: str) -> None:
    """`UserError` where the weights of `name` differ by tag in how they were trained; `form`: with a tag in it."""
    ways = set(by_tag.values())
    parts: dict[str, set[Any]] = {
        "mean and std": {(way.mean, way.std) for way in ways},
        f"activation (GELU or {QUICK_GELU})": {way.quick_gelu for way in ways},
    }
    differ = [part for part, found in parts.items() if len(found) > 1]
    if differ:
        raise UserError(
            f"{source}: the weights of {name} were not all trained with one {' and one '.join(differ)}. Say which "
            f"these are: {form}, TAG one of {', '.join(by_tag)}."
        )


@dataclass
class OpenedModel:
    """A model ready for use, in evaluation mode on the CPU.

    `checkpoint` is the whole content of a training checkpoint of ours (heads, centres), None for every other source.
    """

    source: str
    model: Any  # a `Model`; Any, as consumers ask for the towers of one kind or the other
    facts: SourceFacts
    checkpoint: dict[str, Any] | None = None


def files_hash(paths: Sequence[Path]) -> str:
    """SHA-256, hex: of the file, or of the concatenated digests of several."""
    digests = [_file_hash(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def count(module: nn.Module | None) -> int:
    """Number of parameters, each tensor once."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def pair_facts(
    model: ImageTextModel, *, source: str, kind: str, where: str, sha256: str | None, licence: str | None = None
) -> SourceFacts:
    """The facts of a model of ours; it may be on the meta device."""
    image = model.image
    return SourceFacts(
        source=source,
        kind=kind,
        where=where,
        sha256=sha256,
        licence=licence,
        arch=image.arch,
        mean=NO_NORMALISATION[0],
        std=NO_NORMALISATION[1],
        cls_tokens=image.cls_tokens,
        registers=0,
        position_grid=(image.position_grid, image.position_grid),
        image_size=model.image_size,
        image_parameters=count(image),
        text_parameters=count(model.text),
        texts=f"text tower, {model.text.vocabulary:,} tokens, {model.text.context} a text",
        vocabulary=model.tokenizer.vocabulary,
    )


def _times(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"
