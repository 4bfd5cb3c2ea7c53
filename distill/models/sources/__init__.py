"""Models from anywhere, by a source string: `KIND:WHERE`, one file a kind.

| source | what it opens |
|---|---|
| `run:PATH[#NAME]`, or a plain path | a run of ours or a checkpoint file; `#NAME` picks a student |
| `file:X.safetensors` | a model that `distill export --to safetensors` wrote |
| `tips:VISION.npz[+TEXT.npz][+TOKENIZER.model]` | the official TIPS and TIPSv2 files, of PyTorch or JAX |
| `timm:NAME[.TAG][@FILE]` | a vision transformer of timm; `@FILE` takes its weights from a file |
| `open_clip:NAME/TAG[@FILE]` | an image-text pair of open_clip; `@FILE` takes its weights from a file |
| `hf:REPO_OR_FOLDER` | TIPSv2 in the layout of transformers (extra `hf`) |
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from distill.errors import UserError, unknown
from distill.models.source_kinds import KINDS, split
from distill.models.sources.base import OpenedModel, SourceFacts

__all__ = ["KINDS", "OpenedModel", "SourceFacts", "describe", "load", "open_model"]


def open_model(source: str | Path) -> OpenedModel:
    """Opens the model at `source`, on the CPU and in evaluation mode.

    Weights of registry sources (timm, open_clip, hf) are fetched where there is a network and they are not cached.
    Raises UserError for an unknown kind, and for missing, damaged or unfitting weights: it says what was looked for,
    where, and how to supply it.
    """
    module, where = _place(source)
    opened: OpenedModel = module.open_source(str(source), where)
    opened.model.eval()
    return opened


def describe(source: str | Path) -> SourceFacts:
    """The facts of `source` without building its weights, and without network; `.missing` where weights are not here.

    Raises UserError as `open_model`, but not for weights that a registry could supply; of hf:, where the files
    themselves say the shape, NotHere.
    """
    module, where = _place(source)
    facts: SourceFacts = module.describe_source(str(source), where)
    return facts


def load(source: str | Path) -> Any:
    """`distill.load`: the model at `source`, ready for `encode_image`, `encode_text` and `preprocess`."""
    return open_model(source).model


def _place(source: str | Path) -> tuple[Any, str]:
    """The module that opens this kind of source, and what follows the colon."""
    text = str(source)
    kind, where = split(text)
    if kind not in KINDS:
        raise unknown("kind of source", kind, KINDS, "Write KIND:WHERE, such as run:runs/demo.")
    if not where:
        raise UserError(f"'{text}' names nothing after the colon. Write {KINDS[kind]}.")
    return import_module(f"distill.models.sources.{kind}"), where
