"""`distill data look`: what is in shards (or in the scenes), with a contact sheet."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track

from distill.config.schema import DataConfig
from distill.data.decode import Picture
from distill.data.sample import Sample, SampleError, Source
from distill.data.sources import open_shards, open_source, spread
from distill.data.stream import StreamSource

NAMED = 10  # problems printed by name
COLUMNS, ROWS = 6, 4  # of the contact sheet
TILE, TEXT = 180, 58  # pixels: side of a picture, height of the text below it


@dataclass
class FieldStats:
    """One caption field over the samples examined."""

    samples: int = 0  # that have it
    words: list[int] = field(default_factory=list)  # of each text


@dataclass
class Look:
    """What was found. Everything but `samples` and `shards` is of the samples examined."""

    samples: int | None  # None: a stream, whose length is not known
    shards: int  # 0: not in shards
    examined: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width)
    formats: Counter[str] = field(default_factory=Counter)
    fields: dict[str, FieldStats] = field(default_factory=dict)
    masks: int = 0
    problems: list[SampleError] = field(default_factory=list)
    tiles: list[tuple[Image.Image, str]] = field(default_factory=list)  # for the contact sheet


def look(what: str, limit: int = 2000, console: Console | None = None) -> Look:
    """Examines `what`, "scenes" or a pattern of shards: at most `limit` samples spread over it (0: all of them).

    A stream gives its first samples. Raises UserError when nothing matches.
    """
    source = open_source(DataConfig()) if what == "scenes" else open_shards(what, epoch=1, masks=True)
    if isinstance(source, StreamSource):
        found = Look(None, len(source.shards))
        total = limit
    else:
        found = Look(len(source), len(getattr(source, "shards", [])), problems=list(getattr(source, "failures", [])))
        total = min(limit or len(source), len(source))
    every = max(1, total // (COLUMNS * ROWS))
    records = track(_records(source, limit), "looking", total or None, console=console, transient=True)
    for number, record in enumerate(records):
        found.examined += 1
        try:
            if isinstance(record, SampleError):
                raise record
            _examine(found, record, tile=number % every == 0)
        except SampleError as error:
            found.problems.append(error)
    return found


def _records(source: Source | StreamSource, limit: int) -> Iterator[Sample | SampleError]:
    if isinstance(source, StreamSource):
        records = (record for shard in source.shards for record in source.records(shard))
        yield from islice(records, limit or None)
        return
    for index in spread(len(source), limit or len(source)):
        try:
            yield source[index]
        except SampleError as error:
            yield error


def _examine(found: Look, sample: Sample, tile: bool) -> None:
    for name, texts in sample.captions.items():
        stats = found.fields.setdefault(name, FieldStats())
        stats.samples += 1
        stats.words += [len(text.split()) for text in texts]
    found.masks += sample.mask is not None
    picture = Picture(sample)
    pixels = picture.decode()
    found.sizes.append(picture.size)
    found.formats[_format(sample)] += 1
    if sample.mask is not None and sample.mask.shape != picture.size:
        raise SampleError(sample.shard, sample.key, f"mask does not fit ({sample.mask.shape} over {picture.size})")
    if tile and len(found.tiles) < COLUMNS * ROWS:
        small = Image.fromarray(pixels)
        small.thumbnail((TILE, TILE))
        text = next((texts[0] for texts in sample.captions.values()), sample.key)
        found.tiles.append((small, text))


def _format(sample: Sample) -> str:
    if isinstance(sample.image, np.ndarray):
        return "pixels"
    return Image.open(io.BytesIO(sample.image)).format or "?"


def report(found: Look) -> str:
    """The findings as text."""
    lines = ["a stream of unknown length" if found.samples is None else f"{found.samples} samples"]
    if found.shards:
        lines[0] += f" in {found.shards} shards"
    if found.examined != found.samples:
        lines[0] += f"; {found.examined} examined"
    if found.sizes:
        shorter = sorted(found.sizes, key=lambda size: size[0] * size[1])
        middle = f"{median(w for _, w in found.sizes):.0f} x {median(h for h, _ in found.sizes):.0f}"
        (low_h, low_w), (high_h, high_w) = shorter[0], shorter[-1]
        lines.append(f"images: smallest {low_w} x {low_h}, median {middle}, largest {high_w} x {high_h}")
        lines.append("formats: " + ", ".join(f"{name} {count}" for name, count in found.formats.most_common()))
    for name, stats in sorted(found.fields.items()):
        per = len(stats.words) / stats.samples
        lines.append(
            f"captions '{name}': in {stats.samples} samples, {per:.1f} a sample, words median "
            f"{median(stats.words):.0f}, most {max(stats.words)}, empty {stats.words.count(0)}"
        )
    if not found.fields:
        lines.append("captions: none")
    lines.append(f"masks: {found.masks}")
    lines.append(f"unusable: {len(found.problems)}")
    lines += [f"  {problem}" for problem in found.problems[:NAMED]]
    if len(found.problems) > NAMED:
        lines.append(f"  ... and {len(found.problems) - NAMED} more")
    return "\n".join(lines)


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """The beginning of a text in four lines, none wider than a picture."""
    for letters in range(30, 0, -1):
        lines = textwrap.wrap(text, letters, max_lines=4, placeholder=" …")
        if all(font.getlength(line) <= TILE for line in lines):
            break
    return lines


def contact_sheet(tiles: list[tuple[Image.Image, str]], path: Path) -> None:
    """A PNG of the pictures with the beginning of a caption below each. Raises OSError when it cannot be written."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 11)
    columns = min(COLUMNS, max(len(tiles), 1))
    rows = max(1, -(-len(tiles) // columns))
    gap = 8
    sheet = Image.new("RGB", (columns * (TILE + gap) + gap, rows * (TILE + TEXT + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, text) in enumerate(tiles):
        row, column = divmod(number, columns)
        left, top = gap + column * (TILE + gap), gap + row * (TILE + TEXT + gap)
        sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
        lines = _wrap(text, font)
        draw.multiline_text((left, top + TILE + 2), "\n".join(lines), fill="black", font=font, spacing=2)
    sheet.save(path)
