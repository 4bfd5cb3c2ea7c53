"""The verb `distill study`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from distill.config.entries import NewList, read_overrides
from distill.errors import UserError
from distill.terminal import output

OF_A_RUN = ("seeds", "parallel", "only", "again", "keep", "lr_check", "fraction")  # flags, as their attributes


def register(subparsers: Any) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "study",
        help="run a grid of variants and seeds, and compare them",
        description="Run the missing cells of a study (variants x seeds), then write results.json and report.html.",
        epilog="scale=small: one of the recipe's scales. Keys under eval. change the study's evaluation; all others "
        "are settings of every variant's run.",
    )
    parser.add_argument(
        "recipe",
        help="a study from 'distill ls study', or a file; with --report also a folder of one study or of several",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every variant")
    parser.add_argument("--seeds", type=int, metavar="N", help="run seeds 0 to N-1 (default: the recipe's)")
    parser.add_argument("--parallel", type=int, metavar="N", help="cells at once (default: one a CPU core or GPU)")
    parser.add_argument("--only", metavar="A,B", help="only these variants, and the teachers they need")
    parser.add_argument("--again", action="store_true", help="run anew what is done; old cells are kept aside")
    parser.add_argument("--name", help="folder under --runs (default: the study's name)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder that holds the runs (default: runs)")
    parser.add_argument(
        "--keep", metavar="DIR", help="also copy finished cells, small, to DIR; what is there is not run"
    )
    parser.add_argument(
        "--lr-check", action="store_true", help="only try every variant briefly at three learning rates"
    )
    parser.add_argument(
        "--fraction", type=float, metavar="F", help="of a variant's steps in --lr-check (default: 0.25)"
    )
    parser.add_argument("--report", action="store_true", help="only rebuild the report from the results there are")
    parser.add_argument(
        "--claims", metavar="FILE", help="with --report of several studies: their claim table also into this page"
    )
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Exit status: 0 all done, 1 some cells failed, 130 interrupted."""
    from distill.study.markdown import README, check_place, put_claims
    from distill.study.rates import FRACTION
    from distill.study.results import holds_studies, load_results, load_studies
    from distill.study.run import rebuild, study, tell
    from distill.study.table import summary_table

    console = output()
    if args.claims and not (args.report and holds_studies(_results_folder(args))):
        raise UserError(f"--claims {args.claims} is for several studies: distill study FOLDER --report --claims FILE.")
    if args.report:
        _refuse_run_words(args)
        folder = _results_folder(args)
        if args.claims:
            check_place(Path(args.claims))
        report = rebuild(folder)
        if args.claims:
            put_claims(Path(args.claims), load_studies(folder))
        if holds_studies(folder):
            console.print(f"{folder / README}\n{report}", highlight=False)
            return 0
        console.print(summary_table(load_results(folder), console.width))
        console.print(str(report), highlight=False)
        return 0
    if args.fraction is not None and not args.lr_check:
        raise UserError(f"--fraction {args.fraction:g} is of the steps in --lr-check; give both, or leave it out.")
    fraction = FRACTION if args.fraction is None else args.fraction
    began = time.monotonic()
    result = study(
        args.recipe,
        settings(args.overrides),
        seeds=args.seeds,
        parallel=args.parallel,
        only=_names(args.only),
        again=args.again,
        name=args.name,
        runs=args.runs,
        keep=args.keep,
        lr_check=fraction if args.lr_check else None,
    )
    tell(result, console, time.monotonic() - began)
    return 130 if result.outcome.interrupted else 0 if result.complete else 1


def settings(words: list[str]) -> dict[str, Any]:
    """`key=value` words as dotted keys, parsed as everywhere else."""
    entries, problems = read_overrides(words)
    if problems:
        raise UserError("; ".join(map(str, problems)))
    for entry in entries:
        if isinstance(entry.value, NewList):
            raise UserError(f"{entry.key}: give single values to a study, as {entry.key}.0.arch=tiny/8.")
    return {entry.key: entry.value for entry in entries}


def _names(text: str | None) -> list[str]:
    """The variants of --only; none where it was not given, which means all."""
    names = [word.strip() for word in (text or "").split(",") if word.strip()]
    if text is not None and not names:
        raise UserError("--only names no variant; give some (--only A,B), or leave it out to run all.")
    return names


def _refuse_run_words(args: argparse.Namespace) -> None:
    """For --report, which runs nothing. Raises `UserError` that names the first word it has no use for."""
    if args.overrides:
        raise UserError(f"--report runs nothing, so it takes no settings; leave out {args.overrides[0]}.")
    for name in OF_A_RUN:
        if getattr(args, name) not in (None, False):
            raise UserError(f"--report runs nothing, so it takes no --{name.replace('_', '-')}; leave it out.")


def _results_folder(args: argparse.Namespace) -> Path:
    """A folder with results, or that of a study by its recipe."""
    from distill.study.recipe import read_study

    folder = Path(args.recipe)
    if folder.is_dir():
        return folder
    try:
        return Path(args.runs) / (args.name or read_study(args.recipe).study)
    except UserError as error:
        raise UserError(f"There is no folder of results {folder}, and as a recipe: {error}") from None
