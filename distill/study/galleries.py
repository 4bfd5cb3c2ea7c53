"""The pictures of a report: for each kind a table of variants by test images, every picture stored once a page."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from distill.study.fragments import data_uri, esc
from distill.study.store import MANIFEST, read_json

Shelf = dict[str, str]
"""A page's pictures: id -> definition; shown by reference to the id."""


def definitions(shelf: Shelf) -> str:
    """The markup that holds the pictures; itself it shows nothing."""
    return f'<svg class="shelf" aria-hidden="true"><defs>{"".join(shelf.values())}</defs></svg>' if shelf else ""


def galleries(folders: Mapping[str, Path], shelf: Shelf) -> str:
    """For each kind of panel a table: image, truth and the variants down, test images across. Fills `shelf`."""
    manifests = {v: tree for v, f in folders.items() if (tree := read_json(f / MANIFEST)) is not None}
    if not manifests:
        return ""
    shown = next(iter(manifests.values()))
    drawn = {v: folders[v] for v in manifests}
    keys = "".join(
        f'<span class="key"><i style="background:{esc(c["colour"])}"></i>{esc(c["name"])}</span>'
        for c in shown["legend"]
    )
    parts = []
    for kind, text in shown["panels"].items():
        legend = f'<p class="keys">{keys}</p>' if keys and kind != "pca" else ""
        parts.append(f"<h3>{esc(text)}</h3>{legend}{_gallery(kind, drawn, shown['images'], shelf)}")
    return "".join(parts)


def _gallery(kind: str, folders: Mapping[str, Path], count: int, shelf: Shelf) -> str:
    shared = next(iter(folders.values()))
    rows = [("image", shared, "image"), ("truth", shared, "truth"), *((v, f, kind) for v, f in folders.items())]
    body = "".join(
        f'<tr><th scope="row">{esc(label)}</th>{cells}</tr>'
        for label, folder, name in rows
        if (cells := _row(folder, name, label, count, shelf))
    )
    return f"<div class='scroll'><table class='gallery'><tbody>{body}</tbody></table></div>"


def _row(folder: Path, name: str, label: str, count: int, shelf: Shelf) -> str:
    """Table cells: one strip of all test images where a cell was kept, else a picture each; nothing without any."""
    strip = folder / f"{name}.webp"
    if strip.exists():
        return f'<td colspan="{count}">{picture(strip, f"{label}, {count} test images", shelf, name)}</td>'
    tiles = [folder / f"{name}_{number}.png" for number in range(count)]
    if not any(tile.exists() for tile in tiles):
        return ""
    return "".join(
        f"<td>{picture(tile, f'{label}, test image {number}', shelf, name) if tile.exists() else '–'}</td>"
        for number, tile in enumerate(tiles, start=1)
    )


def picture(path: Path, label: str, shelf: Shelf, kind: str = "") -> str:
    """Put a picture on the shelf and refer to it; the same content is there once."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    name = f"p{hashlib.sha256(content).hexdigest()[:12]}"
    source = data_uri(content, path.suffix.removeprefix("."))
    shelf[name] = f'<image id="{name}" width="{width}" height="{height}" href="{source}"></image>'
    photo = ' class="photo"' if kind == "image" else ""
    box = f'viewBox="0 0 {width} {height}" role="img" aria-label="{esc(label)}"'
    return f'<svg{photo} {box}><use href="#{name}"></use></svg>'
