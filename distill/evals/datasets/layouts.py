"""The folder layouts that evaluation reads: which splits, items and classes a folder has."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from distill.errors import UserError
from distill.evals.datasets.base import Item
from distill.evals.datasets.files import (
    IMAGE_SUFFIXES,
    Colours,
    decode,
    entries,
    read_classes,
    read_colours,
    read_depth,
    read_mask,
    read_normals,
    require_file,
)

Classes = tuple[list[str], list[str], int]  # names, words in prompts, ignore value
SPLIT_FOLDERS = ("train", "val", "validation", "test")
DENSE = ("masks", "depth", "normals")
CAPTION_FORMS = '[{"kind": "alt", "text": "a dog"}, ...] or {"alt": "a dog", "web": ["a dog", "a pet"]}'
NO_CLASSES: Classes = ([], [], 255)


class Layout(Protocol):
    """One way of storing a dataset in a folder."""

    expected: str  # what the folder must hold, for messages

    def fits(self, root: Path) -> bool: ...

    def splits(self, root: Path) -> list[str]: ...

    def items(self, root: Path, split: str) -> list[Item]:
        """The split's images in a fixed order. UserError for a listed file that is missing."""
        ...

    def classes(self, root: Path) -> Classes: ...


class CaptionFile:
    """`captions.jsonl`, a JSON object a line: `{"image": path, "split": name, "captions": [{"kind", "text"}, ...]}`.

    `captions` may also be `{field: text or [texts]}`; `"mask": path` adds a mask (then classes.json names its values,
    and may give the colours of colour-coded ones). Paths are relative to the folder.
    """

    expected = "captions.jsonl"

    def fits(self, root: Path) -> bool:
        return (root / "captions.jsonl").is_file()

    def splits(self, root: Path) -> list[str]:
        return sorted({row["split"] for row in _rows(root / "captions.jsonl")})

    def items(self, root: Path, split: str) -> list[Item]:
        rows = [row for row in _rows(root / "captions.jsonl") if row["split"] == split]
        colours = _colours(root)
        return [self._item(root, row, colours) for row in rows]

    def classes(self, root: Path) -> Classes:
        path = root / "classes.json"
        return read_classes(path) if path.is_file() else NO_CLASSES

    def _item(self, root: Path, row: dict, colours: Colours | None) -> Item:
        image = require_file(root / row["image"], "image")
        mask = require_file(root / row["mask"], "mask") if row.get("mask") else None
        return Item(
            key=str(row.get("id", row["image"])),
            image=partial(decode, image, str(image)),
            mask=None if mask is None else partial(read_mask, mask, colours),
            captions=row["captions"],
            files=_besides(root, colours),
        )


class DenseFolders:
    """`images/` and, with the same relative paths, any of `masks/`, `depth/` and `normals/`.

    Masks are .png, their values named by `classes.json`, which may also give the colours of colour-coded ones. Depth is
    16-bit .png in millimetres or .npy in metres, normals .png or .npy (`distill.evals.datasets.files`). Splits are
    `<split>.txt` files with a stem a line; without any, all images are one split. A .txt file is a split when it is
    called train, val, validation or test, or begins with the stem of an image.
    """

    expected = "images/ with masks/ (and classes.json), depth/ or normals/, and <split>.txt"

    def fits(self, root: Path) -> bool:
        return (root / "images").is_dir() and any((root / name).is_dir() for name in DENSE)

    def splits(self, root: Path) -> list[str]:
        known: set[str] | None = None
        found = []
        for path in sorted(root.glob("*.txt")):
            if path.stem not in SPLIT_FOLDERS:
                if known is None:
                    known = set(_stems(root / "images"))
                if next(iter(_lines(path)), None) not in known:
                    continue  # a README, a licence
            found.append(path.stem)
        return found or ["all"]

    def items(self, root: Path, split: str) -> list[Item]:
        images = _stems(root / "images")
        file = root / f"{split}.txt"
        stems = _lines(file) if file.is_file() else sorted(images)
        colours = _colours(root)
        return [self._item(root, stem, images, file, colours) for stem in stems]

    def classes(self, root: Path) -> Classes:
        path = root / "classes.json"
        if path.is_file():
            return read_classes(path)
        if (root / "masks").is_dir():
            raise UserError(f"{root} has no classes.json, which names the mask values. Found: {entries(root)}.")
        return NO_CLASSES

    def _item(self, root: Path, stem: str, images: dict[str, Path], file: Path, colours: Colours | None) -> Item:
        if stem not in images:
            raise UserError(f"{file} lists '{stem}', but {root / 'images'} has no such image. Correct the list.")
        item = Item(key=stem, image=partial(decode, images[stem], str(images[stem])))
        if (root / "masks").is_dir():
            item.mask = partial(read_mask, require_file(root / "masks" / f"{stem}.png", "mask"), colours)
            item.files = _besides(root, colours)
        if (root / "depth").is_dir():
            item.depth = partial(read_depth, _png_or_npy(root / "depth" / stem, "depth map"))
        if (root / "normals").is_dir():
            item.normals = partial(read_normals, _png_or_npy(root / "normals" / stem, "normals"))
        return item


class ClassFolders:
    """`<split>/<class>/` folders of images, split one of train, val, validation and test.

    `classes.json` may order the classes and give words for prompts; otherwise they are sorted by name.
    """

    expected = "<train|val|test>/<class>/ folders of images"

    def fits(self, root: Path) -> bool:
        return bool(self.splits(root))

    def splits(self, root: Path) -> list[str]:
        return [name for name in SPLIT_FOLDERS if (root / name).is_dir() and _folders(root / name)]

    def items(self, root: Path, split: str) -> list[Item]:
        names = self.classes(root)[0]
        items = []
        for folder in _folders(root / split):
            if folder.name not in names:
                raise UserError(
                    f"{folder} is not a class of {root / 'classes.json'} ({len(names)} names). Add or move it."
                )
            label = names.index(folder.name)
            for path in _images(folder):
                items.append(
                    Item(str(path.relative_to(root)), partial(decode, path, str(path)), label=partial(int, label))
                )
        return items

    def classes(self, root: Path) -> Classes:
        path = root / "classes.json"
        if path.is_file():
            return read_classes(path)
        names = sorted({folder.name for split in self.splits(root) for folder in _folders(root / split)})
        return names, names, 255


LAYOUTS: tuple[Layout, ...] = (CaptionFile(), DenseFolders(), ClassFolders())


def _colours(root: Path) -> Colours | None:
    """Those of colour-coded masks, if the folder's class list has any."""
    path = root / "classes.json"
    return read_colours(path) if path.is_file() else None


def _besides(root: Path, colours: Colours | None) -> tuple[Path, ...]:
    """What a mask's values come from besides its file: with other colours they are others."""
    return () if colours is None else (root / "classes.json",)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _stems(root: Path) -> dict[str, Path]:
    """The images below a folder by their path in it, without its ending."""
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in _images(root)}


def _lines(file: Path) -> list[str]:
    """The lines that hold something, which may have spaces inside. A file of other bytes than UTF-8 lists nothing."""
    text = file.read_bytes().decode("utf-8", errors="replace")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _png_or_npy(path: Path, what: str) -> Path:
    """The file beside `path` (without its ending) that is there; its .npy form wins."""
    array = path.with_name(path.name + ".npy")
    return array if array.is_file() else require_file(path.with_name(path.name + ".png"), what)


def _rows(file: Path) -> list[dict]:
    """The lines of captions.jsonl, checked; their captions are texts by field."""
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: {error}. Each line must be one JSON object.") from error
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise UserError(f'{where}: no "image". Each line must have the image\'s path under "image".')
        for name in ("split", "mask"):
            if row.get(name) is not None and not isinstance(row[name], str):
                raise UserError(
                    f"{where}: {name} = {json.dumps(row[name])}; it must be a text. Leave it out or correct it."
                )
        captions = _captions(row.get("captions", {}), where)
        rows.append({**row, "split": row.get("split") or "all", "captions": captions})
    return rows


def _captions(given: Any, where: str) -> dict[str, list[str]]:
    """Texts by field, from either form; empty texts are left out."""
    if isinstance(given, dict):
        pairs = [
            (name, text) for name, texts in given.items() for text in (texts if isinstance(texts, list) else [texts])
        ]
    elif isinstance(given, list) and all(isinstance(entry, dict) for entry in given):
        pairs = [(entry.get("kind", "caption"), entry.get("text", "")) for entry in given]
    else:
        raise UserError(f"{where}: captions = {json.dumps(given)}. Allowed: {CAPTION_FORMS}.")
    texts_of: dict[str, list[str]] = {}
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str):
            raise UserError(f"{where}: the caption '{name}' is no text: {json.dumps(text)}. Allowed: {CAPTION_FORMS}.")
        if text.strip():
            texts_of.setdefault(name, []).append(text)
    return texts_of
