"""report.html: one file with everything in it, no scripts, for a screen, a phone or paper."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from distill.study import fragments
from distill.study.claim_lines import CLAIMS_TEXT
from distill.study.curves import Curve
from distill.study.fragments import esc
from distill.study.galleries import Shelf, definitions, galleries
from distill.study.plots import MASKED, VISIBLE
from distill.study.rates import load_rates, rates_text
from distill.study.recipe import covers
from distill.study.results import REPORT, Tree, hardware_of, scale_of
from distill.study.store import PICTURES, read_result, true_place


def write_report(results: Tree, folder: Path) -> Path:
    """Build the report from results.json's content and the cells in `folder`; returns its path."""
    return write_page(folder, build_report(results, folder))


def build_report(results: Tree, folder: Path) -> str:
    """The report's text."""
    shelf: Shelf = {}
    return page(results["title"], study_body(results, folder, shelf) + words(), shelf)


def write_page(folder: Path, text: str) -> Path:
    """Put report.html into `folder`, whole or not at all."""
    path = folder / REPORT
    partial = path.with_suffix(".html.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def page(title: str, body: str, shelf: Shelf) -> str:
    """A whole file around `body`, with the pictures that it shows."""
    return Template(_asset("report.html")).substitute(
        css=_asset("report.css"), title=esc(title), body=body, pictures=definitions(shelf)
    )


def study_body(results: Tree, folder: Path, shelf: Shelf, verdicts: str = esc(CLAIMS_TEXT)) -> str:
    """All parts of one study. Curves and pictures are those of each variant's first seed.

    `verdicts`: markup that says how a verdict is made.
    """
    first = {row["variant"]: folder / row["folder"] for row in reversed(results["rows"])}
    first = {v: first[v] for v in results["variants"] if v in first}
    return Template(_asset("study.html")).substitute(
        anchor=esc(results["study"]),
        study=esc(results["study"]),
        title=esc(results["title"]),
        purpose=esc(results["purpose"]),
        facts=_facts(results),
        notes="".join(f'<p class="note">{esc(note)}</p>' for note in notes(results)),
        claims=_section("Claims", verdicts, fragments.claim_list(results)),
        reading=_reading(results),
        scores=fragments.score_table(results),
        paper=_part("In the paper", PAPER_TEXT, fragments.paper_table(results)),
        effects=_part("Effects", EFFECTS_TEXT, fragments.effect_figure(results)),
        differences=_part("Differences", DIFFERENCES_TEXT, fragments.difference_table(results)),
        costs=_part("Cost", COST_TEXT, fragments.cost_table(results)),
        losses=_section("Patch loss by kind of token", LOSS_TEXT, fragments.loss_figures(results, _curves(first))),
        pictures=_section(
            "What the patches know",
            PICTURE_TEXT,
            galleries({v: true_place(f) / PICTURES for v, f in first.items()}, shelf),
        ),
        rates=_rates(folder),
        switches=fragments.switch_table(results),
        settings=_settings(results),
        commands=_commands(results),
    )


WORDS = {
    "iBOT": "pretraining with a patch loss on masked tokens alone (and a CLS loss and an image-text contrast)",
    "iBOT++": "the same with the patch loss on all tokens, visible ones too",
    "CLS": "the token that stands for the whole image; with two, each has captions of its own kind",
    "EMA": "an average of the student's weights over training, which gives the targets: full (trunk and heads) or "
    "head-only (the trunk is the student's own)",
    "final tokens, value path": "two readings of patch tokens for zero-shot segmentation: as they leave the trunk, or "
    "with the last block's attention replaced by each token's own value",
    "mIoU": "mean over classes of intersection over union",
    "k-NN": "the class of an image is voted by the training images whose CLS tokens are nearest",
    "recall@1, R@1": "how often the caption nearest to an image is its own (i→t), or the image to a caption (t→i)",
    "probe": "a linear classifier on frozen patch tokens",
    "RMSE": "root of the mean squared error of depths that are read from frozen patch tokens by a linear layer",
    "class share": "how much of the variance of patch tokens lies between the classes of what they show",
    "global share": "how much of a patch token's variance is shared with the other patches of its image",
}
DIFFERENCES_TEXT = (
    "In percentage points (depth: in the unit of its dataset, less is better), paired by seed. "
    "Bold: the 95 % interval over seeds excludes zero."
)
EFFECTS_TEXT = (
    "Difference of each pair of variants with its 95 % interval, by seed, in the units of the table below. "
    f'<span class="line" style="background:{VISIBLE}"></span><b>better</b>, '
    f'<span class="line" style="background:{MASKED}"></span><b>worse</b>; '
    "dark grey: can be chance, or more is neither better nor worse."
)
PAPER_TEXT = (
    "As published, for far larger models, data and other test images: compare the order of the rows and the signs of "
    "their differences, not the values."
)
COST_TEXT = (
    "Parameters are those of the student's two towers; held in training: all that are trained, averaged or frozen; "
    "memory is the most that the process held; images through the teacher are those that needed a pass of a teacher's "
    "own trunk."
)
LOSS_TEXT = (
    f'Mean over <span class="line" style="background:{MASKED}"></span><b>masked</b> and over '
    f'<span class="line" style="background:{VISIBLE}"></span><b>visible</b> tokens, whether or not they are '
    "supervised; of each variant's first seed. All plots share one vertical axis. A student without a mask has visible "
    "tokens only."
)
PICTURE_TEXT = (
    "The first test images, the same under every variant, by its first seed. PCA: the three main directions of a "
    "variant's patch features as red, green and blue; colours are comparable along a row, not between rows. "
    "Segmentation: each pixel has the colour of the class whose name is nearest to its patch."
)


def words() -> str:
    """What the report's words mean."""
    items = "".join(f"<dt>{esc(word)}</dt><dd>{esc(text)}</dd>" for word, text in WORDS.items())
    return f"<section><h2>Words</h2><dl class='words'>{items}</dl></section>"


def _asset(name: str) -> str:
    return (resources.files("distill.study") / "templates" / name).read_text(encoding="utf-8")


def _section(title: str, text: str, body: str) -> str:
    return f"<section><h2>{esc(title)}</h2><p>{text}</p>{body}</section>" if body else ""


def _part(title: str, text: str, body: str) -> str:
    return f"<h3>{esc(title)}</h3><p>{text}</p>{body}" if body else ""


def _curves(folders: Mapping[str, Path]) -> dict[str, dict[str, Curve]]:
    return {v: (read_result(folder) or {}).get("curves", {}) for v, folder in folders.items()}


def _rates(folder: Path) -> str:
    rates = load_rates(folder)
    return _section("Learning rates", esc(rates_text(rates)), fragments.rate_table(rates)) if rates else ""


def _facts(results: Tree) -> str:
    rows = results["rows"]
    trained = {row["address"]: row["cost"].get("train_seconds", 0.0) for row in rows}
    evaluation = results["eval"]
    facts = {
        "variants": len(results["variants"]),
        "seeds": f"{len(results['seeds'])} ({', '.join(map(str, results['seeds']))})",
        "training": f"{results['steps']:,} steps of {results['batch']:,} images each" + _unless(results),
        "evaluation": f"{evaluation['samples']:,} test images of {evaluation['dataset']}",
        "scale": scale_of(results),
        "hardware": hardware_of(results["rows"]),
        "training time, all runs": f"{sum(trained.values()) / 60:.0f} min",
        "finished": max((str(row["finished"])[:10] for row in rows), default=""),
    }
    return "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in facts.items())


def _unless(results: Tree) -> str:
    """What to add where variants may train for longer or shorter than the first."""
    vary = any(covers(key, "train.steps") for keys in results["factors"].values() for key in keys)
    return ", unless a variant says otherwise" if vary else ""


def notes(results: Tree) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
    if len(results["seeds"]) == 1:
        found.append(
            "One seed: a difference between two rows can be chance, and every claim stays undecided. "
            "Run with --seeds 3 for intervals."
        )
    if results["missing"]:
        names = ", ".join(results["missing"])
        found.append(f"Not finished: {names}. The tables hold what is there.")
    for cell, tail in results["failed"].items():
        last = tail.splitlines()[-1] if tail else "its log is empty"
        found.append(f"{cell} failed, so no claim counts it: {last}")
    rows = results["rows"]
    if len({row["code"] for row in rows}) > 1:
        found.append(
            "The rows were made by different versions of the code; run again with --again to compare strictly."
        )
    if len({row["environment"].get("device") for row in rows}) > 1:
        found.append("The rows were made on different hardware: scores can be compared, times cannot.")
    if len({row["environment"].get("precision") for row in rows}) > 1:
        found.append(
            "Some rows were trained in fp32, others in bf16: times cannot be compared, and a difference between such "
            "rows also holds what precision alone does."
        )
    return found


def _reading(results: Tree) -> str:
    spread = "" if len(results["seeds"]) == 1 else "Mean ± half of the 95 % interval over seeds. "
    return (
        f"{spread}Bold: the best in a column. Zero-shot segmentation is scored from the final patch tokens and from "
        "the value path of the last block; small models can rank differently by the two, so both are always shown."
    )


def _settings(results: Tree) -> str:
    rows = results["rows"]
    versions: dict[str, Any] = rows[0]["environment"].get("packages", {}) if rows else {}
    text = {
        "base recipe": results["base"],
        "set for every variant": ", ".join(f"{k}={v}" for k, v in results["set"].items()) or "nothing",
        "factors": "; ".join(f"{k}: {', '.join(v)}" for k, v in results["factors"].items()),
        "evaluation": ", ".join(results["eval"]["tasks"]),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
        "code": ", ".join(sorted({str(row["code"]) for row in rows})),
    }
    facts = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in text.items() if v)
    return (
        "<p>What is no factor is equal in every variant: data and their order, steps, seeds and evaluation; a variant "
        f'that changes more than the declared factors is refused.</p><dl class="facts">{facts}</dl>'
    )


def _commands(results: Tree) -> str:
    command = results["command"] or f"distill study {shlex.quote(str(results['recipe']))}"
    taught = [name for name, about in results["variants"].items() if about["teacher"]]
    single = f"{command} --only {[*results['variants'], *taught][-1]} --again"
    row = f"<p>One row anew{', with the teacher it needs' if taught else ''}:</p><pre>{esc(single)}</pre>"
    place = " (DIR: the folder that holds it)" if str(results["folder"]).startswith("DIR/") else ""
    return (
        f"<p>The whole study (finished cells are kept):</p><pre>{esc(command)}</pre>"
        f"{'' if results.get('checks') else row}"
        f"<p>This page from the stored results{place}:</p><pre>distill study {esc(results['folder'])} --report</pre>"
    )
