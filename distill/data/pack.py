"""`distill data pack`: a folder of images and a captions file become webdataset shards.

Parallel by shard, deterministic to the byte, and resumable: `NAME.manifest.jsonl` lists the finished shards, which a
second call skips; half-written ones are made again. Samples come in the order of their keys' hashes, so that
neighbours are unrelated and shards can be streamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from distill.data.failures import kind
from distill.data.index import SUFFIX as INDEX
from distill.data.manifest import SUFFIX as MANIFEST
from distill.data.manifest import Manifest, shard_name
from distill.data.records import Reading, Record, read_records
from distill.data.sample import SampleError, printable
from distill.data.shard_jobs import write_shards
from distill.data.tarwriter import Item, Shaping, Written
from distill.errors import UserError

VERSION = 2  # of the bytes this module writes for the same input
NAMED = 10  # problems printed by name


@dataclass(frozen=True)
class PackOptions:
    """What to pack, from where to where."""

    src: Path
    out: Path
    captions: Path | None = None  # None: the one captions file in `src`
    format: str | None = None  # None: recognised by content
    reading: Reading = field(default_factory=Reading)
    shaping: Shaping = field(default_factory=Shaping)
    masks: Path | None = None
    name: str = "data"
    shard_size: int = 1000
    workers: int = 1
    max_error_rate: float = 0.01


@dataclass
class PackResult:
    """What is on disk now. `problems` are the records left out, in this call and those it continued."""

    shards: list[Written]
    skipped: int  # shards that were there already
    problems: list[SampleError]
    fields: Counter[str]  # how many of the samples written have a field

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


def pack(options: PackOptions, console: Console | None = None) -> PackResult:
    """Packs and returns what was made. Raises UserError for bad input, too many unusable records or a full disk."""
    console = console or Console(stderr=True)
    _check(options)
    captions = options.captions or find_captions(options.src)
    with console.status(f"reading {captions.name}"):
        records, problems = read_records(captions, options.format, options.reading)
        items = plan(options, captions, records, problems)
    _refuse_losses(problems, len(items), options.max_error_rate, "Nothing was written.")
    parts = [items[start : start + options.shard_size] for start in range(0, len(items), options.shard_size)]
    names = [shard_name(options.name, number) for number in range(len(parts))]
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(options.out, options.name, digest(items, options))
        done = manifest.open()
    except OSError as error:
        raise UserError(f"Cannot write to {options.out}: {error.strerror or error}. Choose another OUT.") from error
    jobs = {options.out / name: part for name, part in zip(names, parts) if name not in done}
    with _progress(console) as progress:
        task = progress.add_task("packing", total=sum(map(len, jobs.values())))
        show = partial(_show, progress, task)
        for written in write_shards(jobs, options.shaping, options.workers, show):
            manifest.add(written)
            done[written.file] = written
    if options.masks is not None and (options.src / "classes.json").is_file():
        shutil.copyfile(options.src / "classes.json", options.out / "classes.json")
    shards = [done[name] for name in names]
    lost = [problem for shard in shards for problem in shard.problems]
    gone = {problem.key for problem in lost}
    fields = Counter(name for item in items if item.key not in gone for name in item.captions)
    problems += lost
    result = PackResult(shards, len(parts) - len(jobs), problems, fields)
    _refuse_losses(problems, result.samples, options.max_error_rate, "The shards are written without them.")
    return result


def plan(options: PackOptions, captions: Path, records: list[Record], problems: list[SampleError]) -> list[Item]:
    """The samples to write, in their final order. Records without image file or text are added to `problems`."""
    items: dict[str, Item] = {}
    folders = (options.src, options.src / "images", captions.parent)
    for record in records:
        texts = {
            name: kept for name, all_ in record.captions.items() if (kept := [t.strip() for t in all_ if t.strip()])
        }
        path = next((p for folder in folders if record.image and _is_file(p := folder / record.image)), None)
        if path is None:
            problems.append(SampleError(captions.name, printable(record.image) or "-", "missing image"))
            continue
        if not texts:
            problems.append(SampleError(captions.name, printable(record.image), "empty captions"))
            continue
        key = free_key(record.image, items)
        items[key] = Item(key, str(path), texts, _find_mask(options.masks, record.image))
    if options.masks is not None and not any(item.mask for item in items.values()):
        raise UserError(
            f"--masks {options.masks}: no PNG there has the name of an image. Expected: STEM.png per image."
        )
    return sorted(items.values(), key=lambda item: hashlib.sha256(item.key.encode("utf-8", "replace")).digest())


def free_key(image: str, taken: dict[str, Any]) -> str:
    """A key for an image path: no suffix, no dots (they end a key in a tar), not `taken` yet."""
    path = PurePosixPath(image.replace("\\", "/"))
    parts = [part for part in path.with_suffix("").parts if part not in ("/", "..")]
    parts = parts[1:] if len(parts) > 1 and parts[0] == "images" else parts
    key = "/".join(parts).replace(".", "_")
    number = 2
    while (free := key if number == 2 else f"{key}-{number - 1}") in taken:
        number += 1
    return free


def find_captions(src: Path) -> Path:
    """The captions file in `src`, when there is exactly one besides a pack's own files. Raises UserError."""
    suffixes = (".jsonl", ".csv", ".tsv", ".json", ".token", ".txt")
    there = [
        path for path in src.iterdir() if path.name != "classes.json" and not path.name.endswith((MANIFEST, INDEX))
    ]
    found = sorted(path for path in there if path.suffix.lower() in suffixes)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"Which captions file? {src} has {names} ({', '.join(suffixes)}). Name it with --captions FILE."
        )
    return found[0]


def digest(items: list[Item], options: PackOptions) -> str:
    """Identifies what is packed and how; the same digest gives the same shards."""
    found = hashlib.sha256(json.dumps([VERSION, options.shard_size, asdict(options.shaping)]).encode())
    for item in items:
        row = [item.key, os.path.getsize(item.image), item.captions, item.mask]
        found.update(json.dumps(row, sort_keys=True).encode())
    return found.hexdigest()


def _show(progress: Progress, task: TaskID, count: int) -> None:
    progress.update(task, completed=count)


class _Rate(ProgressColumn):
    def render(self, task: Any) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.0f} samples/s")


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _check(options: PackOptions) -> None:
    if not options.src.is_dir():
        raise UserError(f"{options.src} is not a folder. Give the folder that the image paths are relative to.")
    if options.masks is not None and not options.masks.is_dir():
        raise UserError(f"--masks {options.masks} is not a folder.")
    for flag, value, least in (("--shard-size", options.shard_size, 1), ("--workers", options.workers, 1)):
        if value < least:
            raise UserError(f"{flag} is {value}. Allowed: {least} or more.")
    if options.shaping.max_side is not None and options.shaping.max_side < 1:
        raise UserError(f"--max-side is {options.shaping.max_side}. Allowed: 1 or more pixels.")


def _find_mask(masks: Path | None, image: str) -> str | None:
    if masks is None:
        return None
    stem = PurePosixPath(image).with_suffix(".png")
    relative = stem.relative_to("images") if stem.parts[0] == "images" else stem
    names = (stem.name,) if stem.is_absolute() else (stem, relative, stem.name)
    return next((str(path) for name in names if _is_file(path := masks / name)), None)


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have (too long, half a surrogate pair) is no error."""
    return os.path.isfile(path)


def _refuse_losses(problems: list[SampleError], usable: int, rate: float, state: str) -> None:
    total = len(problems) + usable
    if total == 0 or len(problems) / total <= rate:
        return
    named = "; ".join(str(problem) for problem in problems[:3])
    raise UserError(
        f"{len(problems)} of {total} records unusable ({len(problems) / total:.1%}; --max-error-rate is {rate:.1%}). "
        f"First: {named}. {state} Repair them or raise --max-error-rate."
    )


def summary(result: PackResult) -> str:
    """What to print at the end."""
    size = sum(shard.bytes for shard in result.shards) / 2**20
    lines = [f"{result.samples} samples in {len(result.shards)} shards, {size:.1f} MiB"]
    if result.skipped:
        lines[0] += f" ({result.skipped} shards were there already)"
    lines.append("caption fields: " + ", ".join(f"{name} ({count})" for name, count in sorted(result.fields.items())))
    lacking = {name: result.samples - count for name, count in sorted(result.fields.items()) if count < result.samples}
    if lacking:
        each = (f"{name} ({count} of {result.samples} lack it)" for name, count in lacking.items())
        lines.append("not in every sample: " + ", ".join(each))
        lines.append(
            "  where a field is drawn and missing, a run skips the sample (captions.fallback names another field)"
        )
    if result.problems:
        counts = Counter(kind(problem.reason) for problem in result.problems)
        lines.append("left out: " + ", ".join(f"{count} x {reason}" for reason, count in counts.most_common()))
        lines += [f"  {problem}" for problem in result.problems[:NAMED]]
        if len(result.problems) > NAMED:
            lines.append(f"  ... and {len(result.problems) - NAMED} more")
    return "\n".join(lines)
