"""`distill cache RECIPE`: what the frozen teacher says of every view, kept before training."""

from __future__ import annotations

import argparse
from typing import Any


def register(subparsers: Any) -> None:
    """Adds the verb to the command line."""
    text = "Fill teacher.cache.path with the frozen teacher's targets. A run does so too, in its first epochs."
    parser = subparsers.add_parser("cache", help=text, description=text)
    parser.add_argument("recipe", metavar="RECIPE", help="a name from distill ls, or a recipe file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings, the same as the run's")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit status."""
    from distill.training.fill import fill

    filled = fill(args.recipe, args.overrides)
    print(f"{filled.plan.line()}\n{filled.computed:,} views were new. Train with the same settings: distill run")
    return 0
