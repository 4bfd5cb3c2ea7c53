"""`distill eval MODEL task=dataset ...`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UserError

if TYPE_CHECKING:
    from distill.evals.results import TaskResult

HELP = """\
tasks     zeroshot_seg  retrieval  knn  linear_patch
datasets  scenes[:PIXELS]      the embedded scenes
          shards:PATTERN       webdataset tars (?train=PATTERN for knn and linear_patch)
          folder:PATH          images/ + masks/ + classes.json, captions.jsonl, or <split>/<class>/ folders
          add ?split=NAME, ?train=NAME or ?field=NAME (caption field) where there are several
options   task.option=value, such as zeroshot_seg.mode=both zeroshot_seg.prompts=tcl knn.k=10,20 retrieval.field=alt

examples  distill eval run:runs/demo zeroshot_seg=scenes retrieval=scenes knn=scenes linear_patch=scenes
          distill eval run:runs/photos zeroshot_seg=folder:/data/ccp zeroshot_seg.mode=both --size 224 --json ccp.json
"""


def register(subparsers: Any) -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "eval",
        help="evaluate a model",
        description="Evaluate a model. Tasks on the same dataset share one pass over its images.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model's source: run:PATH (or a plain path), tips:, timm:, open_clip:, hf: or file:",
    )
    parser.add_argument("words", metavar="task=dataset", nargs="*", help="what to measure on what")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="images per split, evenly spread (default: all; scenes: 512)"
    )
    parser.add_argument(
        "--size", type=int, metavar="PX", help="evaluation size in pixels (default: 224; scenes: their own)"
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images encoded at a time")
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--json", metavar="FILE", help="write results, protocol, counts, model hash and versions here")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit status."""
    requests = parse_words(args.words)
    target = Path(args.json) if args.json else None
    if target is not None and not target.resolve().parent.is_dir():
        raise UserError(f"--json {target}: there is no folder {target.resolve().parent}. Make it first.")
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: it must be at least 1.")

    from distill.evals.published import beside
    from distill.evals.report import model_hash, show_table, versions
    from distill.models.sources import open_model

    device = choose_device(args.device)
    opened = open_model(args.model)
    model = opened.model.to(device)
    results = evaluate_groups(model, requests, args.samples, args.size, args.batch)
    show_table(results)
    print("".join(f"{line}\n" for line in beside(opened.facts, results)), end="")
    if target is not None:
        content = {
            "model": {"source": args.model, "sha256": model_hash(model)},
            "versions": versions(),
            "device": str(device),
            "results": {task: result.as_dict() for task, result in results.items()},
        }
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"written: {target}")
    return 0


def parse_words(words: list[str]) -> dict[str, dict[str, Any]]:
    """`task=dataset` and `task.option=value` -> `{task: {"dataset": ..., option: value}}`, in the order given."""
    from distill.evals.registry import find_task

    requests: dict[str, dict[str, Any]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        task, dot, option = name.partition(".")
        find_task(task)
        if not equals or not value:
            raise UserError(f"'{word}' has no value. Write {task}=DATASET, such as {task}=scenes.")
        slot = option if dot else "dataset"
        if slot in requests.setdefault(task, {}):
            raise UserError(f"'{name}' is given twice. Give each once.")
        requests[task][slot] = parse_value(value) if dot else value
    if not requests:
        raise UserError("No task. Write task=dataset, such as zeroshot_seg=scenes; distill eval --help lists them.")
    for task, request in requests.items():
        if "dataset" not in request:
            raise UserError(f"Task '{task}' has options but no dataset. Add {task}=DATASET, such as {task}=scenes.")
    return requests


def parse_value(text: str) -> Any:
    """An option's value: a whole number, a number, a list of such (with commas), or the text itself."""
    if "," in text:
        return [parse_value(part) for part in text.split(",") if part]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def choose_device(name: str | None) -> Any:
    """The torch device to run on; UserError for one that is not there."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"Unknown device '{name}'. Allowed: cpu, cuda, cuda:0, ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine has no CUDA GPU that torch can use. Use --device cpu.")
    return device


def evaluate_groups(
    model: Any, requests: dict[str, dict[str, Any]], samples: int | None, size: int | None, batch: int
) -> dict[str, TaskResult]:
    """All requests, those on one dataset together, with a progress bar a split. All is checked before any work."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from distill.evals.datasets import open_dataset
    from distill.evals.run import check_evaluation, evaluate

    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for task, request in requests.items():
        options = {name: value for name, value in request.items() if name != "dataset"}
        groups.setdefault(request["dataset"], {})[task] = options
    opened = {spec: open_dataset(spec, samples=samples, size=size) for spec in groups}
    for spec, tasks in groups.items():
        check_evaluation(tasks, opened[spec], model)
    results: dict[str, TaskResult] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bars:
        for spec, tasks in groups.items():
            dataset = opened[spec]
            shown: dict[str, Any] = {}

            def advance(split: str, count: int, shown: dict[str, Any] = shown, dataset: Any = dataset) -> None:
                if split not in shown:
                    images = dataset.train() if split == "train" else dataset
                    shown[split] = bars.add_task(images.name, total=len(images))
                bars.advance(shown[split], count)

            results |= evaluate(model, tasks, dataset, batch=batch, progress=advance)
    return {task: results[task] for task in requests}
