"""Images and their captions as people keep them: CSV, JSONL, COCO captions and Flickr token files, read as records."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from distill.data.captions import as_texts
from distill.data.sample import SampleError
from distill.errors import UserError, unknown

FORMATS = ("csv", "jsonl", "coco", "flickr")
IMAGE_FIELDS = (
    "image",
    "file_name",
    "filename",
    "image_path",
    "filepath",
    "path",
    "file",
    "img",
    "image_name",
    "image_file",
)
CAPTION_FIELDS = (
    "caption",
    "captions",
    "text",
    "texts",
    "alt",
    "alt_text",
    "title",
    "description",
    "comment",
    "sentence",
    "sentences",
    "topic",
    "web",
    "synthetic",
    "detailed",
)
DELIMITERS = ",;\t|"
FLICKR_LINE = re.compile(r"(.+)#\d+\t(.*)")
IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?)\s*$", re.IGNORECASE)


@dataclass
class Record:
    """One image, as named in the captions file, and its texts by field."""

    image: str
    captions: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What to take from a captions file."""

    image_field: str | None = None  # None: the first of IMAGE_FIELDS that is there
    caption_fields: Mapping[str, str] = field(
        default_factory=dict
    )  # new name -> name in the file; empty: CAPTION_FIELDS
    split: str | None = None  # only records whose `split` is this


def detect_format(path: Path) -> str:
    """One of FORMATS, from the file's beginning. Raises UserError when it is none of them."""
    with _open(path) as stream:
        head = stream.read(1 << 16).lstrip()
    line = head.split("\n", 1)[0]
    if line.startswith("{"):
        try:
            return "coco" if {"images", "annotations"} <= set(json.loads(line)) else "jsonl"
        except ValueError:
            return "coco"  # an object over several lines, or one longer than what was looked at
    if FLICKR_LINE.fullmatch(line.rstrip()):
        return "flickr"
    if any(mark in line for mark in DELIMITERS) and not line.startswith("["):
        return "csv"
    raise unknown("format of", str(path), FORMATS, "It begins with " + repr(line[:40]) + "; name it with --format.")


def read_records(path: Path, format: str | None, reading: Reading) -> tuple[list[Record], list[SampleError]]:
    """All records, those of one image joined, in the file's order; and the lines that cannot be read.

    Raises UserError for a missing or unknown file, or when no image, caption or record of the split is found.
    """
    format = format or detect_format(path)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format in ("coco", "flickr") and reading.split is not None:
        raise UserError(
            f"--split {reading.split}: a {format} file has no splits. Leave it out, or give that split's file."
        )
    joined: dict[str, Record] = {}
    bad: list[SampleError] = []
    rows = {"csv": _csv, "jsonl": _jsonl, "coco": _coco, "flickr": _flickr}[format](path)
    chosen = _Chosen(path, reading)
    for number, row in enumerate(rows, 1):
        if isinstance(row, SampleError):
            bad.append(row)
        elif (record := chosen.record(row)) is not None:
            if not record.image:
                bad.append(SampleError(str(path), f"record {number}", "no image named"))
                continue
            captions = joined.setdefault(record.image, record).captions
            if joined[record.image] is not record:
                for name, texts in record.captions.items():
                    captions[name] = captions.get(name, []) + texts
    chosen.check(joined, bad)
    return list(joined.values()), bad


class _Chosen:
    """Takes image, captions and split from rows, and remembers what it saw for messages."""

    def __init__(self, path: Path, reading: Reading):
        self.path, self.reading = path, reading
        self.columns: dict[str, None] = {}  # an ordered set
        self.splits: set[str] = set()
        self.captioned = False
        self.named = False  # has a record with a field that names its image been seen?

    def record(self, row: dict[str, Any]) -> Record | None:
        """The row's record; None when it belongs to another split."""
        if self.reading.split is not None:
            self.splits.add(str(row.get("split")))
            if str(row.get("split")) != self.reading.split:
                return None
        texts, recognised = _fields(row)
        self.columns.update(dict.fromkeys([*row, *texts]))
        image_field = self._image_field(row)
        self.named = self.named or image_field is not None
        if self.reading.caption_fields:
            names = dict(self.reading.caption_fields)
        else:
            names = {name: name for name in texts if name in recognised}
        captions = {new: texts[old] for new, old in names.items() if old in texts}
        self.captioned = self.captioned or bool(captions)
        return Record(str((row[image_field] if image_field else None) or ""), captions)

    def _image_field(self, row: dict[str, Any]) -> str | None:
        candidates = [self.reading.image_field] if self.reading.image_field else IMAGE_FIELDS
        return next((name for name in candidates if name in row), None)

    def check(self, joined: dict[str, Record], bad: Sequence[SampleError]) -> None:
        if not joined and self.splits:
            raise UserError(
                f"{self.path}: no record of split '{self.reading.split}'. Found: {', '.join(sorted(self.splits))}."
            )
        if self.columns and not self.named:
            wanted = f"'{self.reading.image_field}'" if self.reading.image_field else "that names the image"
            raise UserError(
                f"{self.path}: no column {wanted}. Found: {', '.join(self.columns)}. Name it with --image-field."
            )
        if not joined:
            first = f" First problem: {bad[0]}." if bad else ""
            raise UserError(f"{self.path} holds no record.{first} Give another file with --captions.")
        fields = list(self.reading.caption_fields.values())
        missing = [name for name in fields if name not in self.columns]
        if missing or not self.captioned:
            what = f"caption field {', '.join(missing)}" if missing else "caption field that is recognised"
            found = ", ".join(self.columns)
            raise UserError(f"{self.path}: no {what}. Found: {found}. Name them with --caption-fields [NEW=]NAME ...")


def _fields(row: dict[str, Any]) -> tuple[dict[str, list[str]], set[str]]:
    """The texts of a row by field, and which fields are captions by their name.

    Those are the CAPTION_FIELDS and, where one holds `{kind: text}` or `[{kind, text}]`, its kinds.
    """
    texts: dict[str, list[str]] = {}
    other: dict[str, list[str]] = {}  # inside fields of another name: taken when asked for
    recognised: set[str] = set()
    for name, value in row.items():
        is_caption = name.lower() in CAPTION_FIELDS
        own = as_texts(value)
        found = {name: own} if own else _inside(name, value)
        (texts if own or is_caption else other).update(found)
        if is_caption:
            recognised.update(found)
    return other | texts, recognised


def _inside(name: str, value: Any) -> dict[str, list[str]]:
    """The texts of `{kind: text}` or `[{kind, text}]`, by kind; `name` where there is none."""
    if isinstance(value, dict):
        return {kind: found for kind, part in value.items() if (found := as_texts(part))}
    inner: dict[str, list[str]] = {}
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        for part in value:
            if isinstance(part.get("text"), str):
                inner.setdefault(str(part.get("kind", name)), []).append(part["text"])
    return inner


Row = dict[str, Any] | SampleError


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 24)
    with _open(path, newline="") as stream:
        header, *lines = stream.readlines() or [""]
    delimiter = max(DELIMITERS, key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])]
    if repeated := [name for name, count in Counter(names).items() if name and count > 1]:
        raise UserError(
            f"{path}: several columns are named {', '.join(repeated)}. Give every column a name of its own."
        )
    for number, row in _rows(lines, delimiter):
        while row and len(row) > len(names) and not row[-1].strip():
            row.pop()  # delimiters at the end of a line
        if row is None:
            yield SampleError(str(path), f"line {number}", "a quote that is not closed")
        elif len(row) > len(names):
            mark = "a tab" if delimiter == "\t" else f"'{delimiter}'"
            reason = f"more cells than columns ({len(row)}, not {len(names)}: quote texts that have {mark} in them)"
            yield SampleError(str(path), f"line {number}", reason)
        elif row:
            yield {name: value.strip() for name, value in zip(names, row)}


class _Lines:
    """Lines one after the other, from any place on."""

    def __init__(self, lines: list[str]):
        self.lines, self.place = lines, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.place >= len(self.lines):
            raise StopIteration
        self.place += 1
        return self.lines[self.place - 1]


def _rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """`(line number in the file, cells)` of the rows below a header; no cells where a quote is opened, never closed.

    Without a second look such a quote would take the rows below into its cell. Where tabs part the cells it is no more
    than a character: such files often have no quoting at all.
    """
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=delimiter, skipinitialspace=True)
    while source.place < len(lines):
        start, row = source.place, None
        with suppress(csv.Error):  # a cell beyond the limit: it swallowed what follows
            row = next(reader)
        used = lines[start : source.place]
        if row is None or (len(used) > 1 and not _is_quoted_well(used, delimiter)):
            source.place = start + 1  # the lines below are rows of their own
            row = used[0].rstrip("\r\n").split(delimiter) if delimiter == "\t" else None
        yield start + 2, row


def _is_quoted_well(lines: list[str], delimiter: str) -> bool:
    """Whether the lines of one row are held together by quotes that pair, and not by one that swallowed other rows.

    A text may well have lines with commas; with tabs, or a picture's name in a cell, they are rows.
    """
    try:
        row = next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:
        return False
    below = [line.split(delimiter) for cell in row for line in cell.splitlines()[1:] if delimiter in line]
    return not any(delimiter == "\t" or any(map(IMAGE_NAME.search, cells)) for cells in below)


def _jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield SampleError(str(path), f"line {number}", f"bad JSON ({error})")
                continue
            yield row if isinstance(row, dict) else SampleError(str(path), f"line {number}", "not a JSON object")


def _coco(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        try:
            content = json.load(stream)
            names = {image["id"]: image["file_name"] for image in content["images"]}
            pairs = [(note["image_id"], note["caption"]) for note in content["annotations"]]
        except UnicodeDecodeError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no COCO captions file ({type(error).__name__}: {error}). Expected: images with id and "
                "file_name, annotations with image_id and caption. Name another format with --format."
            ) from error
    texts: dict[Any, list[str]] = {number: [] for number in names}
    for number, caption in pairs:
        if number not in texts:
            yield SampleError(str(path), f"image {number}", "captioned but not listed under images")
            continue
        texts[number].append(caption)
    for number, name in names.items():
        yield {"file_name": name, "caption": texts[number]}


def _flickr(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            match = FLICKR_LINE.fullmatch(line.rstrip("\n"))
            if match:
                yield {"image": match[1], "caption": match[2]}
            elif line.strip():
                yield SampleError(str(path), f"line {number}", "not 'NAME#NUMBER<tab>CAPTION'")


@contextmanager
def _open(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    """The file's text. Raises UserError when it cannot be read, or where it is not UTF-8."""
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as stream:
            yield stream
    except OSError as error:
        raise UserError(f"Cannot read captions file {path}: {error.strerror or error}. Check --captions.") from error
    except UnicodeDecodeError as error:
        raise _undecodable(path) from error


def _undecodable(path: Path) -> UserError:
    lines = path.read_bytes().split(b"\n")
    number, line = next((n, line) for n, line in enumerate(lines, 1) if not _is_utf8(line))
    encoding = "UTF-16" if lines[0][:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
    return UserError(
        f"{path}: line {number} is not UTF-8: {line[:40]!r}. Convert the file, for example with "
        f"iconv -f {encoding} -t UTF-8 {path.name} > utf8{path.suffix}, and give that with --captions."
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
