"""The formats of `distill export --to`: name, module, and the extra that its packages are in."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, cast

from distill.errors import UserError, unknown
from distill.export.base import Format


class Entry(NamedTuple):
    module: str
    packages: tuple[str, ...] = ()  # beyond the package's own dependencies
    extra: str = ""


FORMATS = {
    "timm": Entry("to_timm"),
    "hf": Entry("to_hf", ("transformers.models.tipsv2",), "hf"),
    "onnx": Entry("to_onnx", ("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "tips": Entry("to_tips"),
    "safetensors": Entry("to_safetensors"),
}


def find_format(name: str) -> Format:
    """The module of a format; UserError for an unknown one, and where its packages are missing."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS, fix="Write --to NAME.")
    entry = FORMATS[name]
    missing = [package for package in entry.packages if not _there(package)]
    if missing:
        raise UserError(f"--to {name} needs {', '.join(missing)}: pip install 'everypatch[{entry.extra}]'.")
    return cast(Format, import_module(f"distill.export.{entry.module}"))


def _there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
