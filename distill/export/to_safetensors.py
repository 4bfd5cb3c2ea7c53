"""`--to safetensors`: our own model in one file without pickles; shape and tokenizer are in its header."""

from __future__ import annotations

from pathlib import Path

from distill.export.base import Reloaded, our_pair
from distill.models.sources import open_model
from distill.models.sources.base import OpenedModel
from distill.models.sources.file import save_safetensors

ANY_SIZE = True
FILE = "model.safetensors"


def check(opened: OpenedModel) -> None:
    our_pair(opened, "safetensors")


def write(opened: OpenedModel, folder: Path) -> None:
    save_safetensors(opened.model, folder / FILE, opened.facts.licence)


def reload(folder: Path) -> Reloaded:
    model = open_model(f"file:{folder / FILE}").model
    return Reloaded(lambda images: dict(zip(("cls", "patches", "values"), model.image.dense(images))),
                    model.text, model.tokenizer)  # fmt: skip


def loading(opened: OpenedModel, name: str) -> tuple[str, list[str]]:
    code = f'import distill\n\nmodel = distill.load("file:{name}/{FILE}")\ncls, patches = model.encode_image(images)'
    return code, ["The tokenizer and the shape of both towers are in the header of the file."]
