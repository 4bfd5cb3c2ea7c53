"""`distill bench [NAME ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill.bench.registry import BENCHMARKS
from distill.errors import UserError


def register(subparsers: Any) -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="measure speed and memory against plain references",
        description="Measure speed and memory against plain references, both in one run.",
        epilog="benchmarks\n" + "".join(f"  {name:<16}{line}\n" for name, (_, line) in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="which benchmarks (default: all)")
    parser.add_argument("--quick", action="store_true", help="smallest sizes: shows that all of it runs")
    parser.add_argument("--json", metavar="FILE", help="write results here; those of other benchmarks in FILE are kept")
    parser.add_argument("--report", metavar="FILE", help="write a Markdown page of all results (needs --json)")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit status."""
    target = Path(args.json) if args.json else None
    page = Path(args.report) if args.report else None
    if page is not None and target is None:
        raise UserError(f"--report {page} is made from a results file: add --json FILE.")
    for path in (target, page):
        if path is not None and not path.resolve().parent.is_dir():
            raise UserError(f"There is no folder {path.resolve().parent} for {path.name}. Make it first.")

    from distill.bench.run import run_benchmarks

    run_benchmarks(args.names, quick=args.quick, target=target, page=page)
    return 0
