"""`distill data pack` and `distill data look` on the command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from distill.errors import UserError


def register(subparsers: Any) -> None:
    """Adds the verb `data` and what follows it."""
    data = subparsers.add_parser("data", help="pack shards, look into them", description="Training data.")
    verbs = data.add_subparsers(metavar="pack|look", required=True)
    pack = verbs.add_parser("pack", help="images + captions -> shards", description=PACK, formatter_class=_Raw)
    add_pack_arguments(pack)
    pack.set_defaults(main=main_pack)
    look = verbs.add_parser("look", help="what is in shards", description=LOOK, formatter_class=_Raw)
    add_look_arguments(look)
    look.set_defaults(main=main_look)


PACK = """Pack a folder of images and a captions file into webdataset shards.

The captions file, in UTF-8, is one of
  jsonl   a record a line: image, split, captions (text, list of texts,
          {field: text} or [{kind, text}])
  csv     a header, then a row per image or caption; , ; tab or | between
  coco    a COCO captions file
  flickr  NAME#NUMBER<tab>CAPTION a line
Call it again with the same arguments to continue after an interruption."""

LOOK = "Print counts, sizes, caption fields and damage; draw a contact sheet."


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("src", type=Path, metavar="SRC", help="folder that image paths are relative to")
    add("out", type=Path, metavar="OUT", help="folder for the shards")
    add("--captions", type=Path, metavar="FILE", help="captions file (default: the only one in SRC)")
    add("--format", help="csv, jsonl, coco or flickr (default: recognised by content)")
    add("--image-field", metavar="NAME", help="column or key that names the image")
    add("--caption-fields", nargs="+", default=[], metavar="[NEW=]NAME", help="fields to keep, renamed with NEW=NAME")
    add("--split", metavar="NAME", help="only records whose split is NAME")
    add("--masks", type=Path, metavar="DIR", help="folder of STEM.png masks of class indices")
    add("--max-side", type=int, metavar="PX", help="make larger images smaller (default: keep the original bytes)")
    add("--verify", action="store_true", help="decode every image in full, not only its header")
    add("--name", help="shards are NAME-000000.tar, ... (default: the split, else 'data')")
    add("--shard-size", type=int, default=1000, metavar="N", help="samples per shard (default: 1000)")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one per core)")
    add(
        "--max-error-rate", type=float, default=0.01, metavar="R", help="share of records that may fail (default: 0.01)"
    )


def main_pack(args: argparse.Namespace) -> int:
    from distill.data.pack import PackOptions, pack, summary
    from distill.data.records import Reading
    from distill.data.tarwriter import Shaping

    options = PackOptions(
        src=args.src,
        out=args.out,
        captions=args.captions,
        format=args.format,
        reading=Reading(args.image_field, renamed(args.caption_fields), args.split),
        shaping=Shaping(args.max_side, args.verify),
        masks=args.masks,
        name=args.name or args.split or "data",
        shard_size=args.shard_size,
        workers=args.workers,
        max_error_rate=args.max_error_rate,
    )
    print(summary(pack(options)))
    return 0


def renamed(words: list[str]) -> dict[str, str]:
    """`["web=alt", "caption"]` -> `{"web": "alt", "caption": "caption"}`. Raises UserError for a name given twice."""
    names: dict[str, str] = {}
    for word in words:
        new, equals, old = word.partition("=")
        if not new or (equals and not old) or new in names:
            raise UserError(f"--caption-fields '{word}': Allowed: NAME or NEW=NAME, each NEW once.")
        names[new] = old or new
    return names


def add_look_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("shards", metavar="SHARDS", help="glob, brace range, 'pipe:COMMAND', url, several joined by '::'; or scenes")
    add("--out", type=Path, default=Path("sheet.png"), metavar="PNG", help="contact sheet (default: sheet.png)")
    add("--samples", type=int, default=2000, metavar="N", help="samples to examine, 0 for all (default: 2000)")


def main_look(args: argparse.Namespace) -> int:
    from distill.data.look import contact_sheet, look, report

    if args.samples < 0:
        raise UserError(f"--samples is {args.samples}. Allowed: 0 (all) or more.")
    if not args.out.resolve().parent.is_dir():
        raise UserError(f"--out {args.out}: there is no folder {args.out.resolve().parent}. Make it first.")
    found = look(args.shards, args.samples)
    print(report(found))
    try:
        contact_sheet(found.tiles, args.out)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write {args.out}: {error}. Choose another --out, such as sheet.png.") from error
    print(f"contact sheet: {args.out}")
    return 0
