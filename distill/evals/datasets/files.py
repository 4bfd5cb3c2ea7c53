"""Reading images, masks, depth, normals and class lists from files, with errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from distill.errors import UserError
from distill.pixels import upright_rgb

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
GREY_MODES = ("L", "P", "I", "I;16", "I;16B", "1")
Colours = dict[tuple[int, int, int], int]  # what each colour of a colour-coded mask stands for


def decode(file: Path | IO[bytes], name: str) -> Image.Image:
    """Upright RGB image of any colour mode, as the loader makes them for training (distill/pixels.py)."""
    try:
        with Image.open(file) as image:
            return upright_rgb(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"Cannot read the image {name}: {error}. Repair it or leave it out.") from error


def read_mask(path: Path, colours: Colours | None = None) -> np.ndarray:
    """Integer class indices `[H, W]` of an 8- or 16-bit grey or palette PNG, or of a colour-coded one by `colours`."""
    try:
        with Image.open(path) as image:
            if image.mode in GREY_MODES:
                return np.array(image).astype(np.int64) if image.mode != "L" else np.array(image)
            if colours is not None and image.mode in ("RGB", "RGBA"):
                return _decode_colours(np.array(image.convert("RGB")), colours, path)
            raise UserError(
                f"The mask {path} has mode {image.mode}; a mask holds one class index a pixel "
                f"(8- or 16-bit grey, or palette), or colours that classes.json lists. Convert it."
            )
    except (OSError, SyntaxError) as error:
        raise UserError(f"Cannot read the mask {path}: {error}. Repair it or leave the image out.") from error


def _decode_colours(pixels: np.ndarray, colours: Colours, path: Path) -> np.ndarray:
    """Colours `[H, W, 3]` -> the values they stand for `[H, W]`; UserError for a colour that stands for none."""
    known = np.array([_packed(colour) for colour in colours])  # [C]
    values = np.array(list(colours.values()), np.int64)
    order = np.argsort(known)
    coded = pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])  # [H, W]
    at = order[np.searchsorted(known[order], coded).clip(max=len(known) - 1)]
    wrong = np.argwhere(known[at] != coded)
    if len(wrong):
        row, column = wrong[0]
        raise UserError(
            f"The mask {path} has the colour {tuple(int(v) for v in pixels[row, column])} in row {row}, column "
            f"{column}, which stands for no class ({len(colours)} colours are known). Correct the mask or the list."
        )
    return values[at]


def _packed(colour: Sequence[int]) -> int:
    return (colour[0] << 16) + (colour[1] << 8) + colour[2]


def read_depth(path: Path, unit: float = 1000.0) -> np.ndarray:
    """Depth `[H, W]` float32 in metres: a `.npy` file of metres, or a 16-bit grey PNG of metres times `unit`."""
    if path.suffix == ".npy":
        return _read_array(path, 2)
    try:
        with Image.open(path) as image:
            if image.mode not in ("I;16", "I;16B", "I"):
                raise UserError(
                    f"The depth map {path} has mode {image.mode}; "
                    f"depth is a 16-bit grey PNG or a .npy file. Convert it."
                )
            return np.array(image).astype(np.float32) / unit
    except (OSError, SyntaxError) as error:
        raise UserError(f"Cannot read the depth map {path}: {error}. Repair it or leave the image out.") from error


def read_normals(path: Path) -> np.ndarray:
    """Unit normals `[H, W, 3]` float32, zeros where there is none: a `.npy` file, or an 8-bit RGB PNG.

    A PNG stores each component as (n + 1) / 2 * 255. Vectors shorter than a half (grey or black pixels) are no normals.
    """
    if path.suffix == ".npy":
        normals = _read_array(path, 3)
    else:
        try:
            with Image.open(path) as image:
                if image.mode != "RGB":
                    raise UserError(
                        f"The normals {path} have mode {image.mode}; they are an RGB PNG, or a .npy file. Convert it."
                    )
                pixels = np.array(image)
        except (OSError, SyntaxError) as error:
            raise UserError(f"Cannot read the normals {path}: {error}. Repair it or leave the image out.") from error
        normals = pixels.astype(np.float32) / 127.5 - 1
        normals[(pixels == 0).all(-1)] = 0
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.where(length > 0.5, normals / np.maximum(length, 0.5), 0).astype(np.float32)


def _read_array(path: Path, dimensions: int) -> np.ndarray:
    """A `.npy` file as float32; no code in it is run."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}. It must be an array saved with numpy.save.") from error
    if array.ndim != dimensions:
        raise UserError(f"{path} has {array.ndim} dimensions {array.shape}; it must have {dimensions}: redo it.")
    return array.astype(np.float32)


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
    if not isinstance(prompts, dict) or not all(isinstance(words, str) for words in prompts.values()):
        raise UserError(
            f"{path}: prompt_names = {json.dumps(prompts)}; it must be an object "
            f'{{"name of a class": "what prompts say for it", ...}}.'
        )
    unknown = [name for name in prompts if name not in names]
    if unknown:
        raise UserError(
            f"{path}: prompt_names has '{unknown[0]}', which is not among its classes. Remove or correct it."
        )
    return names, [str(prompts.get(name, name)) for name in names], _ignore_index(content, path)


def _ignore_index(content: dict, path: Path) -> int:
    value = content.get("ignore_index", 255)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(
            f"{path}: ignore_index = {json.dumps(value)}; it must be a whole number, the mask value that is not scored "
            f"(255 where it is left out)."
        )
    return value


def read_colours(path: Path) -> Colours | None:
    """The colours of colour-coded masks in a `classes.json`: `"colours": [[r, g, b] of each class, in their order]`.

    `"ignore_colours": [[r, g, b], ...]` are not scored. None when it lists none.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "colours" not in content:
        return None
    names, ignore = content.get("classes", []), _ignore_index(content, path)
    listed, ignored = (_colours(content.get(key, []), key, path) for key in ("colours", "ignore_colours"))
    if len(listed) != len(names):
        raise UserError(f"{path} has {len(listed)} colours for {len(names)} classes. Give one a class, in their order.")
    if len({*listed, *ignored}) != len(listed + ignored):
        raise UserError(f"{path}: colours must be different triples [red, green, blue].")
    return {**{colour: value for value, colour in enumerate(listed)}, **dict.fromkeys(ignored, ignore)}


def _colours(given: Any, key: str, path: Path) -> list[tuple[int, int, int]]:
    if not isinstance(given, list):
        raise UserError(f"{path}: {key} = {json.dumps(given)}; it must be a list of triples [red, green, blue].")
    for colour in given:
        if (
            not isinstance(colour, list)
            or len(colour) != 3
            or not all(type(v) is int and 0 <= v <= 255 for v in colour)
        ):
            raise UserError(
                f"{path}: {key} has {json.dumps(colour)}; a colour is a triple [red, green, blue] of whole numbers "
                f"from 0 to 255."
            )
    return [(red, green, blue) for red, green, blue in given]


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder (not of those below it), sorted by name."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(found, key=attrgetter("name"))  # paths themselves take long to compare


def require_file(path: Path, what: str) -> Path:
    """`path`, or a UserError saying what is missing and what its folder holds."""
    if not path.is_file():
        raise UserError(f"The {what} {path} is missing. Found in {path.parent}: {entries(path.parent)}.")
    return path


def entries(path: Path) -> str:
    """What a folder holds, for messages: sub-folders with a slash, then files, at most twelve."""
    if not path.is_dir():
        return "no such folder"
    found = sorted(path.iterdir(), key=lambda p: (not p.is_dir(), p.name))
    names = [p.name + "/" * p.is_dir() for p in found[:12]] + ["..."] * (len(found) > 12)
    return ", ".join(names) or "nothing"
