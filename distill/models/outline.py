"""A source's towers without their weights, on the meta device: what is compared with a student before it is opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from distill.models import official_variants
from distill.models.loading import entry_of
from distill.models.npz import read_shapes
from distill.models.pair import ImageTextModel
from distill.models.source_kinds import split
from distill.models.sources import SourceFacts, run
from distill.models.sources.timm import TWO_CLS
from distill.models.text import TextTower
from distill.models.tokenizers import Tokenizer
from distill.models.tokenizers.sentence_piece import SentencePieceTokenizer
from distill.models.vision import VisionTower


@dataclass
class Outline:
    """Both towers on the meta device; `image` is a `VisionTower` and `text` a `TextTower` where they are of ours."""

    image: nn.Module
    text: nn.Module | None
    tokenizer: Tokenizer | None


def outline(facts: SourceFacts, student: ImageTextModel) -> Outline:
    """The model that `facts` describe. What shows only when it is opened is taken to be as in `student`.

    That is the GELU and the tokenizer of hf:. Raises UserError for a damaged file.
    """
    kind, where = split(facts.source)
    if kind == "run":
        file, content, name = run.read(where)
        return _of_spec(entry_of(content, name, str(file))["spec"])
    if kind == "file":
        with safe_open(Path(where).expanduser(), framework="pt") as content:
            return _of_spec(json.loads(content.metadata()["spec"]))
    if kind == "open_clip" or (kind == "timm" and where.partition("@")[0].partition(".")[0] not in TWO_CLS):
        return Outline(nn.Identity(), None, None)
    gelu, tokenizer = student.image.gelu, student.tokenizer if facts.vocabulary is not None else None
    if kind == "timm":
        gelu = official_variants.GELU["torch"]
    if kind == "tips":
        gelu, tokenizer = _of_files(where, gelu)
    return Outline(_image(facts, gelu), _text(facts, student), tokenizer)


def _of_spec(spec: dict[str, Any]) -> Outline:
    with torch.device("meta"):
        model = ImageTextModel.from_spec(spec)
    return Outline(model.image, model.text, model.tokenizer)


def _of_files(where: str, gelu: str) -> tuple[str, Tokenizer | None]:
    """GELU and tokenizer of official files."""
    tokenizer = None
    for path in (Path(part).expanduser() for part in where.split("+") if part):
        if path.suffix == ".model":
            tokenizer = SentencePieceTokenizer.from_file(path)
        elif (file := official_variants.recognise(read_shapes(path))) is not None and file.tower == "vision":
            gelu = official_variants.GELU[file.layout]
    return gelu, tokenizer


def _image(facts: SourceFacts, gelu: str) -> VisionTower:
    assert facts.position_grid is not None
    with torch.device("meta"):
        return VisionTower(facts.arch, cls_tokens=facts.cls_tokens, position_grid=facts.position_grid[0], gelu=gelu)


def _text(facts: SourceFacts, student: ImageTextModel) -> TextTower | None:
    if not facts.text_parameters:
        return None
    with torch.device("meta"):
        return TextTower(facts.arch, facts.vocabulary or student.text.vocabulary)
