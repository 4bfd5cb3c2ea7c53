"""The command line: `distill VERB ...`. Each verb lives with what it does and is imported only when it is called.

A verb's module has `register(subparsers)`, which adds its parser and `set_defaults(main=...)`, a function of the parsed
arguments that returns the exit status. Settings are words `key=value`, in any place after the recipe.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from distill import __version__
from distill.errors import UserError, did_you_mean

VERBS = {  # verb: (module, one line for the overview)
    "ls": ("distill.cli", "list the shipped recipes"),
    "cp": ("distill.cli", "copy a recipe to a file of your own"),
    "check": ("distill.check", "validate a recipe and show its plan, without training"),
    "plan": ("distill.plan", "work out memory, step time and days on given devices"),
    "run": ("distill.cli", "train: pretrain or distil"),
    "cache": ("distill.training.cache_cli", "keep a frozen teacher's targets before training"),
    "study": ("distill.study.cli", "run a grid of variants and seeds, and compare them"),
    "eval": ("distill.evals.cli", "evaluate a model"),
    "export": ("distill.export.cli", "write a model for timm, transformers, ONNX and others"),
    "data": ("distill.data.cli", "pack shards, look into them"),
    "bench": ("distill.bench.cli", "measure speed and memory against plain references"),
}
GROUPS = {
    "pretrain": "train a teacher from image-text data",
    "distill": "train students from a teacher",
    "study": "compare variants, with distill study",
    "eval": "evaluate a model, with distill eval MODEL NAME",
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are `UserError`s, whose flags cannot be shortened, and which takes words in any order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        for action in self._actions:
            if action.nargs == "*" and isinstance(action.metavar, str):
                message = message.replace(f", {action.metavar}", "")  # never required, whatever argparse says
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        raise UserError(f"{self.prog}: {message}. Usage: {usage}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 problems found, 2 bad input, 130 interrupted."""
    try:
        args = parse(list(sys.argv[1:] if argv is None else argv))
        return int(args.main(args) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `distill ls | head`
        sys.stderr.close()
        return 141


def parse(argv: list[str]) -> argparse.Namespace:
    """The parsed arguments of `argv`, with `.main` to call."""
    root = Parser(prog="distill", description=_overview(), formatter_class=argparse.RawDescriptionHelpFormatter)
    root.add_argument("--version", action="version", version=f"distill {__version__}")
    if not argv or argv[0].startswith("-"):
        if not argv:
            argv = ["--help"]
        _, unknown = root.parse_known_args(argv)
        raise UserError(f"'{(unknown or argv)[0]}' is not a verb. distill is followed by one of: {', '.join(VERBS)}")
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        raise UserError(f"Unknown verb '{verb}'.{did_you_mean(verb, VERBS)} Allowed: {', '.join(VERBS)}")
    subparsers = root.add_subparsers(parser_class=Parser, metavar="VERB")
    register = REGISTER.get(verb) or import_module(VERBS[verb][0]).register
    register(subparsers)
    parser, words = _innermost(subparsers.choices[verb], rest)
    return _parse_words(parser, words)


def _innermost(parser: Any, words: list[str]) -> tuple[Any, list[str]]:
    """The parser that reads the words: that of `data pack` for `data pack ...`."""
    nested = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    if nested is None:
        return parser, words
    if words and words[0] in ("-h", "--help"):
        parser.parse_args(words)  # prints and exits
    choices = list(nested.choices)
    if not words or words[0] not in choices:
        wrong = f"Unknown: {parser.prog} {words[0]}.{did_you_mean(words[0], choices)} " if words else ""
        raise UserError(f"{wrong}{parser.prog} is followed by one of: {', '.join(choices)}")
    return _innermost(nested.choices[words[0]], words[1:])


def _parse_words(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    args, unknown = parser.parse_known_intermixed_args(words)
    if not unknown:
        return args
    wrong = [word for word in unknown if word.startswith("-")] or unknown
    raise UserError("; ".join(_complaint(parser, word, hasattr(args, "overrides")) for word in wrong))


def _complaint(parser: argparse.ArgumentParser, word: str, takes_settings: bool) -> str:
    """What is wrong with a word that the parser does not know."""
    if not word.startswith("-"):
        return f"'{word}' is one word too many for {parser.prog}"
    name, _, value = word.partition("=")
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    if near := difflib.get_close_matches(name, flags, n=1, cutoff=0.75):
        return f"unknown flag '{name}'. Did you mean '{near[0]}'?"
    if not takes_settings:
        return f"unknown flag '{name}'; {parser.prog} knows {', '.join(flags)}"
    from distill.config.fields import schema, suggestion

    key = name.lstrip("-").replace("-", "_")
    if key in schema()[0]:
        return f"unknown flag '{name}'; settings are written key=value: {key}={value or 'VALUE'}"
    return f"unknown flag '{name}'; settings are written key=value.{suggestion(key)}"


def _overview() -> str:
    lines = ["Pretrain, distil, compare and evaluate vision-language encoders.", ""]
    lines += [f"  distill {verb:<7}{text}" for verb, (_, text) in VERBS.items()]
    lines += ["", "Start with: distill ls. Help for one verb: distill VERB --help."]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- ls, cp, run


def _register_ls(subparsers: Any) -> None:
    parser = subparsers.add_parser("ls", help=VERBS["ls"][1], description="List the shipped recipes.")
    parser.add_argument("filter", nargs="?", default="", help="only names that contain this")
    parser.set_defaults(main=_ls)


def _ls(args: argparse.Namespace) -> int:
    from distill.config.recipes import header, shipped

    found = {name: header(text) for name, text in shipped().items() if args.filter in name}
    if not found:
        raise UserError(f"No recipe's name contains '{args.filter}'. All of them: distill ls")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # in a pipe a text is one line
    groups = [*GROUPS, *sorted({name.split("/")[0] for name in found} - set(GROUPS))]
    for group in groups:
        members = {name: top for name, top in found.items() if name.startswith(group + "/")}
        if members:
            print(f"{group}: {GROUPS.get(group, '')}".rstrip(": "))
        for name, top in members.items():
            print(f"  {name}")
            for word, text in (("", top.purpose), ("reproduces ", top.reproduces), ("costs ", top.costs)):
                if text:
                    print(_indented(f"{word}{text}", width))
    print("\nNext: distill check NAME, distill run NAME (distill study, distill eval MODEL), distill cp NAME my.yaml")
    return 0


def _indented(text: str, width: int | None) -> str:
    """A text below its heading, within `width` columns where there is such a limit."""
    indent = " " * 6
    return (
        indent + text if width is None else textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
    )


def _register_cp(subparsers: Any) -> None:
    parser = subparsers.add_parser("cp", help=VERBS["cp"][1], description="Copy a recipe to a file of your own.")
    parser.add_argument("recipe", metavar="NAME", help="a name from distill ls, or a recipe file")
    parser.add_argument("file", metavar="FILE", help="where to; an existing file is never overwritten")
    parser.set_defaults(main=_cp)


def _cp(args: argparse.Namespace) -> int:
    from distill.config.recipes import find

    recipe = find(args.recipe)
    target = Path(args.file)
    if target.is_dir():
        target = target / f"{recipe.stem}.yaml"
    if target.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"'{target}' does not end in .yaml, so distill run would not know it as a file; use {target}.yaml"
        )
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(recipe.text)
    except FileExistsError:
        raise UserError(f"'{target}' exists already; choose another name or remove it first") from None
    except OSError as error:
        raise UserError(f"'{target}' cannot be written: {error.strerror}") from None
    print(f"{recipe.name} copied to {target}. Next: distill check {target}")
    return 0


def _register_run(subparsers: Any) -> None:
    text = "Train as the recipe says. Settings are key=value: distill run pretrain/scenes_tiny optim.lr=1e-3"
    parser = subparsers.add_parser("run", help=VERBS["run"][1], description=text)
    parser.add_argument("recipe", metavar="RECIPE", help="a name from distill ls, or a recipe file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that win over the recipe's")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="build everything, show what would run, write nothing")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="folder of all runs (default: runs)")
    parser.set_defaults(main=_run)


def _run(args: argparse.Namespace) -> int:
    from distill.config.load import load_config

    load_config(args.recipe, args.overrides).require_complete()  # refused before anything heavy is imported
    from distill.training.run import run

    run(args.recipe, args.overrides, resume=args.resume, dry_run=args.dry_run, runs=args.runs)
    return 0


REGISTER = {"ls": _register_ls, "cp": _register_cp, "run": _register_run}
