"""Shipped recipes and recipe files: finding them, and the header that says what they are for."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from distill.errors import UserError

STUDY = re.compile(r"^variants:", re.MULTILINE)  # the key that every study has and no run
SUITE = re.compile(r"^tasks:", re.MULTILINE)  # the same of evaluation recipes


@dataclass(frozen=True)
class Recipe:
    """A recipe's text and where it came from."""

    label: str  # for messages: `pretrain/scenes_tiny.yaml`, or the path as it was given
    stem: str  # file name without its ending: the default name of the run
    text: str
    path: Path | None  # of a file; None when it is a shipped one

    @property
    def name(self) -> str:
        """What `distill ls` calls it, or the path as it was given."""
        return self.label if self.path else self.label.removesuffix(".yaml")

    @property
    def is_study(self) -> bool:
        """Is it a grid of runs, for `distill study`, rather than one run?"""
        return STUDY.search(self.text) is not None

    @property
    def is_suite(self) -> bool:
        """Is it a list of tasks, for `distill eval`?"""
        return SUITE.search(self.text) is not None

    @property
    def identity(self) -> str:
        """Equal for two ways of writing the same recipe."""
        return str(self.path or self.label)


@dataclass(frozen=True)
class Header:
    """The comment lines at the top of a recipe."""

    purpose: str
    reproduces: str
    costs: str


def shipped() -> dict[str, str]:
    """Text of every shipped recipe by name (`pretrain/scenes_tiny`), sorted; also from an installed wheel."""
    found: dict[str, str] = {}
    for group in resources.files("recipes").iterdir():
        if not group.is_dir() or group.name.startswith(("_", ".")):
            continue
        for item in group.iterdir():
            if item.name.endswith(".yaml"):
                found[f"{group.name}/{item.name[:-5]}"] = item.read_text(encoding="utf-8")
    return dict(sorted(found.items()))


def find(name: str | Path, beside: Path | None = None) -> Recipe:
    """The recipe called `name` (from `distill ls`) or at the path `name`; `beside`: folder that paths are relative to.

    Raises `UserError` when there is none, naming the nearest.
    """
    text = str(name)
    known = shipped()
    plain = text.removeprefix("recipes/").removesuffix(".yaml")
    path = (beside or Path()) / Path(text).expanduser()
    if path.is_file():
        return _read(path, text)
    if path.is_dir() and (path / "resolved.yaml").is_file():
        raise UserError(f"Recipe '{text}' is a run's folder. To start from its settings, give {text}/resolved.yaml")
    if plain in known:
        return Recipe(f"{plain}.yaml", plain.rsplit("/", 1)[-1], known[plain], None)
    if path.is_dir():
        raise UserError(f"Recipe '{text}' is a folder; give the name of a recipe (distill ls) or a YAML file")
    same_end = [other for other in known if other.rsplit("/", 1)[-1] == plain.rsplit("/", 1)[-1]]
    near = same_end or difflib.get_close_matches(plain, known, n=2, cutoff=0.5)
    guess = f" Did you mean {' or '.join(repr(other) for other in near)}?" if near else ""
    if text.endswith((".yaml", ".yml")):
        raise UserError(f"No recipe file '{text}'.{guess} Shipped recipes: distill ls")
    raise UserError(f"Unknown recipe '{text}'.{guess} Give a name from 'distill ls' or the path of a .yaml file")


def _read(path: Path, label: str) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"Recipe '{label}' is not a text file (UTF-8); give a YAML recipe") from None
    except OSError as error:
        raise UserError(f"Recipe '{label}' cannot be read: {error.strerror}") from None
    return Recipe(label, path.stem, text, path.resolve())


def header(text: str) -> Header:
    """Purpose (first comment line), `# reproduces:` and `# costs:` of a recipe's text; empty where absent."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    fields = {"reproduces": "", "costs": ""}
    current = ""
    for line in lines[1:]:
        word, colon, rest = line.partition(":")
        if colon and word in fields:
            current, fields[word] = word, rest.strip()
        elif current and line:
            fields[current] += " " + line  # a long line goes on
        else:
            current = ""
    return Header(lines[0] if lines else "", fields["reproduces"], fields["costs"])
