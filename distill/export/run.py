"""`distill.export(source, to, out)`: opens, writes, reloads, compares, and only then keeps the export."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from distill.errors import UserError
from distill.export.base import compare, native_size
from distill.export.card import card
from distill.export.registry import find_format
from distill.models.sources import open_model

TOKENIZERS = ("tokenizer.model", "tokenizer.json", "tokenizer_state.json")
FILES = (".npz", ".safetensors", ".pt")  # what a model's file ends in; a dot in another name is part of it


@dataclass(frozen=True)
class Exported:
    """Where the export lies, and the largest relative difference from the original that was found."""

    folder: Path
    difference: float


def export(source: str | Path, to: str, out: str | Path | None = None) -> Exported:
    """Writes the model at `source` as a folder in the format `to`: weights, tokenizer, model card.

    `out`: the folder, which must not exist yet (default: beside the current directory's files, NAME-FORMAT). It is
    reloaded in its own ecosystem and compared with the original first; UserError when they differ, when the format
    cannot hold the model, or when a package is missing. Then nothing is left behind.
    """
    form = find_format(to)
    opened = open_model(source)
    target = Path(out) if out is not None else Path(f"{_name(str(source))}-{to}")
    if target.exists():
        raise UserError(f"{target} exists already: choose another --out, or remove it first.")
    if not target.absolute().parent.is_dir():
        raise UserError(f"--out {target}: there is no folder {target.absolute().parent}. Make it first.")
    form.check(opened)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.absolute().parent) as parent:
        folder = Path(parent) / target.name
        folder.mkdir()
        form.write(opened, folder)
        difference = compare(opened, form.reload(folder), form.ANY_SIZE)
        code, notes = form.loading(opened, target.name)
        tokenizer = next((name for name in TOKENIZERS if (folder / name).is_file()), None)
        size = opened.model.image_size if form.ANY_SIZE else native_size(opened.model.image)
        text = card(opened, to, size, code, notes, difference, tokenizer)
        (folder / "README.md").write_text(text, encoding="utf-8")
        shutil.move(folder, target)
    return Exported(target, difference)


def _name(source: str) -> str:
    """A folder name from a source: the run's, the file's or the model's."""
    where = source.partition(":")[2] or source
    first = where.split("+")[0].partition("#")[0].rstrip("/")
    path = Path(first)
    return (path.stem if path.suffix in FILES else path.name) or "model"
