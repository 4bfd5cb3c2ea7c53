"""`file:X.safetensors`: a model of ours in one file without pickles; its shape and tokenizer are in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from distill.errors import UserError
from distill.models.loading import FORMAT
from distill.models.npz import mismatches
from distill.models.pair import ImageTextModel
from distill.models.sources.base import OpenedModel, SourceFacts, files_hash, pair_facts
from distill.models.weights import read_weights


def save_safetensors(model: ImageTextModel, path: str | Path, licence: str | None = None) -> None:
    """Writes `model` so that `file:PATH` opens it. The header says format, shape, tokenizer and, if given, licence."""
    header = {"format": FORMAT, "spec": json.dumps(model.spec()), **({"licence": licence} if licence else {})}
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    save_file(weights, path, metadata=header)


def open_source(source: str, where: str) -> OpenedModel:
    path = Path(where).expanduser()
    model, header = _look(path)
    weights = read_weights(path)
    with torch.device("cpu"):
        real = ImageTextModel.from_spec(json.loads(header["spec"]))
    real.load_state_dict(weights)
    return OpenedModel(source, real, _facts(source, path, model, header))


def describe_source(source: str, where: str) -> SourceFacts:
    path = Path(where).expanduser()
    return _facts(source, path, *_look(path))


def _look(path: Path) -> tuple[ImageTextModel, dict[str, str]]:
    """The model on the meta device and the header; `UserError` when the file is another one or does not fit."""
    if not path.is_file():
        raise UserError(f"No file at {path}. Give the path of a .safetensors file that distill export wrote.")
    try:
        with safe_open(path, framework="pt") as content:
            header = content.metadata() or {}
            shapes = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"Cannot read {path}: it is truncated, damaged or no safetensors file.") from error
    if header.get("format") != FORMAT:
        first = ", ".join(list(shapes)[:3]) or "nothing"
        raise UserError(
            f"{path} is not a model of ours: it holds {first}. Give a file that distill export --to safetensors wrote; "
            f"for weights of timm write timm:NAME@{path}."
        )
    try:
        spec: dict[str, Any] = json.loads(header["spec"])
        with torch.device("meta"):
            model = ImageTextModel.from_spec(spec)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"The header of {path} does not fit this version of everypatch: {error}.") from error
    wrong = mismatches(shapes, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    if wrong:
        raise UserError(f"{path} does not fit its own header: {wrong}.")
    return model, header


def _facts(source: str, path: Path, model: ImageTextModel, header: dict[str, str]) -> SourceFacts:
    sha256 = files_hash([path])
    return pair_facts(model, source=source, kind="file", where=str(path), sha256=sha256, licence=header.get("licence"))
