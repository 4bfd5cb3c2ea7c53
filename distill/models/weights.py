"""Weights in files that may come from anywhere: read without running code, checked before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.errors import UserError
from distill.models.npz import check_finite


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a PyTorch checkpoint (unpickled with `weights_only`), by name.

    A checkpoint that keeps them under "model" or "state_dict" is opened there. Raises UserError for a missing,
    truncated or foreign file, and for values that are not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"No weights at {path}. Give the path of a .safetensors file or a PyTorch checkpoint.")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the zip reader, the unpickler and safetensors raise many types for a damaged file
        reason = "" if isinstance(error, SafetensorError) else ", or it holds code, which is not run"
        raise UserError(f"Cannot read {path}: it is truncated, damaged or no file of weights{reason}.") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)} if _named(content) else {}
    if not tensors:
        raise UserError(f"{path} is not a file of weights: it holds no named tensors.")
    check_finite({name: value for name, value in tensors.items() if value.is_floating_point()}, str(path))
    return tensors


def shorten(error: Exception, length: int = 300) -> str:
    """An error of another library as one line, its beginning."""
    text = " ".join(str(error).split())
    return text if len(text) <= length else text[:length] + " ..."


def _named(content: object) -> bool:
    return isinstance(content, dict) and all(isinstance(name, str) for name in content)
