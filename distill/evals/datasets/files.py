"""Reading images, masks and class lists from files, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from distill.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def decode(file: Path | IO[bytes], name: str) -> Image.Image:
    """RGB image (grey, CMYK and palette images are converted), turned upright by its EXIF orientation."""
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"Cannot read the image {name}: {error}. Repair it or leave it out.") from error


def read_mask(path: Path) -> np.ndarray:
    """Integer class indices `[H, W]` of an 8- or 16-bit grey or palette PNG."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "I", "I;16", "1"):
                raise UserError(
                    f"The mask {path} has mode {image.mode}; a mask holds one class index a pixel "
                    f"(8- or 16-bit grey, or palette). Convert it."
                )
            return np.array(image).astype(np.int64) if image.mode != "L" else np.array(image)
    except (OSError, SyntaxError) as error:
        raise UserError(f"Cannot read the mask {path}: {error}. Repair it or leave the image out.") from error


def read_json(path: Path) -> Any:
    """A JSON file's content."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}. It must be a JSON file.") from error


def read_classes(path: Path) -> tuple[list[str], list[str], int]:
    """Class names, prompt names and ignore value of a `classes.json`.

    `{"classes": [...], "ignore_index": 255, "prompt_names": {class: words in prompts}}`, or a plain list of names.
    """
    content = read_json(path)
    if isinstance(content, list):
        content = {"classes": content}
    names = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f'{path} holds no class names. Write {{"classes": ["name of value 0", "name of value 1", ...]}}.'
        )
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"{path} names the class '{sorted(repeated)[0]}' twice. Class names must differ.")
    prompts = content.get("prompt_names", {})
    unknown = [name for name in prompts if name not in names]
    if unknown:
        raise UserError(
            f"{path}: prompt_names has '{unknown[0]}', which is not among its classes. Remove or correct it."
        )
    return names, [prompts.get(name, name) for name in names], int(content.get("ignore_index", 255))


def entries(path: Path) -> str:
    """What a folder holds, for messages: sub-folders with a slash, then files, at most twelve."""
    if not path.is_dir():
        return "no such folder"
    found = sorted(path.iterdir(), key=lambda p: (not p.is_dir(), p.name))
    names = [p.name + "/" * p.is_dir() for p in found[:12]] + ["..."] * (len(found) > 12)
    return ", ".join(names) or "nothing"
