"""The model card of an export: what the model is, where it comes from, how it scores, how to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill.evals.registry import find_task
from distill.evals.report import figure, identity, unit_of, versions
from distill.evals.store import read_results, same_model
from distill.models.sources.base import OpenedModel
from distill.models.sources.origins import read_origins, run_folder


def card(
    opened: OpenedModel, to: str, size: int, code: str, notes: list[str], difference: float, tokenizer: str | None
) -> str:
    """The text of README.md. `size`: the side in pixels that the export takes; `difference`: the largest found when it
    was compared; `tokenizer`: its file.
    """
    facts, model = opened.facts, opened.model
    recipe = _recipe(opened)
    lines = ["---", f"license: {facts.licence.lower() if facts.licence else 'unknown'}", "---", ""]
    lines += [f"# {facts.arch} in the format of {to}", "", facts.line(), ""]
    lines += ["## Load it", "", "```python", code, "```", "", *(f"- {note}" for note in notes), ""]
    lines += ["## Preprocessing and texts", ""]
    lines += [f"- RGB images in [0, 1], resized to {size} x {size} px (bilinear, antialiased); no mean or std is "
              f"removed. Sides are multiples of {model.image.patch} px."]  # fmt: skip
    if size != model.image_size:
        lines += [
            f"- The original is used at {model.image_size} px; this format takes the size of its positions alone."
        ]
    if model.text is not None and to != "timm":
        lower = " after lower-casing" if tokenizer == "tokenizer.model" else ""
        where = (
            "in the file of weights" if to == "safetensors" else f"in `{tokenizer}`" if tokenizer else "not included"
        )
        lines += [f"- The tokenizer is {where}: its ids{lower}, padded with 0, at most {model.text.context} a text.",
                  *tokenising(tokenizer, model.text.context),
                  f"- Contrastive temperature {model.temperature.item():.6g}: logits are cosines divided by it.",
        ]  # fmt: skip
    lines += ["", "## Where it comes from", "", f"- Source: `{facts.source}`, SHA-256 `{facts.sha256 or 'unknown'}`"]
    lines += [f"- Licence: {facts.licence or 'unknown; that of the training data and of any teacher applies'}"]
    lines += [
        f"- Made from `{origin['source']}` ({origin['key']}): licence {origin['licence'] or 'unknown'}, SHA-256 "
        f"`{origin['sha256'] or 'unknown'}`"
        for origin in read_origins(facts)
    ]
    lines += [f"- {key}: {value}" for key, value in recipe]
    lines += ["", "## Evaluation", "", *_evaluations(opened), ""]
    lines += ["## Made with", "", ", ".join(f"{name} {value}" for name, value in versions().items()), ""]
    lines += [f"Compared with the original before it was kept: largest relative difference {difference:.2g}.", ""]
    return "\n".join(lines)


def tokenising(tokenizer: str | None, context: int) -> list[str]:
    """How `ids` and `valid` `[B, L]` are made where the tokenizer is in a format of ours."""
    if tokenizer != "tokenizer_state.json":
        return []
    return [
        "",
        "  ```python",
        "  import json",
        "  from distill.models.tokenizers import load_tokenizer",
        "  tokenizer = load_tokenizer(json.load(open('tokenizer_state.json')))",
        f"  ids, valid, cut = tokenizer.encode(['a red disc'], {context})  # int64 and bool [B, {context}]",
        "  ```",
        "",
    ]


def _recipe(opened: OpenedModel) -> list[tuple[str, str]]:
    """Recipe and teacher, from the run's own record."""
    folder = run_folder(opened.facts)
    if folder is None:
        return [("Recipe and teacher", "unknown: the source is no run's folder")]
    import yaml

    asked = (folder / "config.yaml").read_text(encoding="utf-8").strip()
    resolved: Any = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))
    teacher = resolved.get("teacher", {}) if isinstance(resolved, dict) else {}
    said = ", ".join(f"{key} {teacher[key]}" for key in ("mode", "source") if teacher.get(key) is not None)
    block = "\n".join(["as asked:", "", "```yaml", asked, "```"])
    return [("Teacher", said or "unknown"), ("Recipe", block)]


def _evaluations(opened: OpenedModel) -> list[str]:
    """A table of every results file of `distill eval` in the run's folder that is of this model."""
    folder, own = run_folder(opened.facts), identity(opened.model)
    rows = []
    for file in sorted(folder.rglob("*.json")) if folder is not None else []:
        content = read_results(file) if _holds_results(file) else None
        if content is None or not same_model(content["model"], own):
            continue
        for label, result in content["results"].items():
            rows += [
                f"| {label} | {result['dataset']} | {name} | {figure(result['metrics'][name], unit_of(result, name))} |"
                for name in find_task(result["task"]).headline
                if name in result["metrics"]
            ]
    if not rows:
        return ["No results of this model by `distill eval --json` in its run's folder."]
    return ["| task | dataset | metric | value |", "|---|---|---|---|", *rows]


def _holds_results(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and {"model", "versions", "results"} <= set(content)
