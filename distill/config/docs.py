"""The page of all keys: `python -m distill.config.docs > docs/config.md`."""

from __future__ import annotations

from distill.config.fields import Leaf, schema
from distill.config.resolved import to_text

TOP = """# Every key of a recipe

This page is made from the schema by `python -m distill.config.docs > docs/config.md`.

A recipe is a YAML file. It may name another as its `base:`. A later layer wins: defaults, base, recipe, then the
settings given as `key=value` on the command line or as keywords in Python. A list replaces the list below it. Of
`students`, `students.0.arch` or `students.NAME.arch` sets one student's key and `students.arch` every student's.
`${train.steps}` stands for another key's value, `${oc.env:HOME}` for an environment variable. `???` marks a value that
the user has to give before a run.

`distill check RECIPE key=value ...` validates all of it. `resolved.yaml` in a run's folder shows every value with the
place it came from.
"""


def page() -> str:
    """The whole page as Markdown."""
    leaves, sections = schema()
    parts = [TOP, _table("Top level", "", [leaf for key, leaf in leaves.items() if "." not in key])]
    for section, text in sections.items():
        prefix = section.replace("students", "students.*") + "."
        own = [leaf for key, leaf in leaves.items() if key.startswith(prefix) and "." not in key[len(prefix) :]]
        if own:
            parts.append(_table(section, text, own))
    return "\n".join(parts)


def _table(title: str, text: str, leaves: list[Leaf]) -> str:
    lines = [f"## {title}", ""]
    if text:
        lines += [text[0].upper() + text[1:] + ".", ""]
    lines += ["| Key | Type | Default | Accepts | What it does |", "|---|---|---|---|---|"]
    for leaf in leaves:
        cells = (f"`{leaf.key}`", leaf.type_name, f"`{to_text(leaf.default)}`", leaf.allowed, leaf.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(page(), end="")
