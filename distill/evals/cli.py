"""`distill eval MODEL task=dataset ...`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UserError
from distill.evals.requests import read_suite

if TYPE_CHECKING:
    from distill.evals.store import Store
    from distill.models.sources.base import SourceFacts

HELP = """\
tasks     zeroshot_seg zeroshot_cls retrieval knn linear_cls linear_seg
          linear_patch locality depth normals instance
datasets  scenes[:PIXELS]   the embedded scenes
          shards:PATTERN    webdataset tars (?train=PATTERN for tasks that fit
                            something)
          folder:PATH       images/ with masks/, depth/ or normals/,
                            captions.jsonl, or <split>/<class>/ folders
          csv:FILE          images and captions listed in a table; jsonl:FILE
          KIND:PATH         a benchmark as its publishers ship it, KIND one of
                            ade20k pascal_context59 pascal_context60 voc20
                            voc21 coco_object coco_stuff cityscapes imagenet
                            coco_karpathy flickr30k docci nyuv2 navi uned
          add ?split=NAME, ?train=NAME or ?field=NAME (caption field) where
          there are several
options   task.option=value, such as zeroshot_seg.mode=both
          zeroshot_seg.background=threshold knn.k=10,20
again     task@NAME=dataset asks for a task a second time, such as
          zeroshot_seg@tcl=... zeroshot_seg@tcl.stride=224
recipes   eval/scenes, eval/paper_... (distill ls eval), or a file; words after
          it win over it; task@NAME=none leaves one of its lines out, task=none
          all of a task's

examples
  distill eval run:runs/scenes_tiny zeroshot_seg=scenes knn=scenes
  distill eval run:runs/photos zeroshot_seg=ade20k:/data/ADE --json a.json
  distill eval run:runs/photos eval/paper_segmentation --data /data
  distill eval --compare a.json b.json
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
        nargs="?",
        help="a model's source: run:PATH (or a plain path), tips:, timm:, open_clip:, hf: or file:",
    )
    parser.add_argument("words", metavar="RECIPE|task=dataset", nargs="*", help="what to measure on what")
    parser.add_argument("--data", metavar="DIR", help="the folder that a recipe's datasets are below")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="images per split, evenly spread (default: all; scenes: 512)"
    )
    parser.add_argument(
        "--size", type=int, metavar="PX", help="evaluation size in pixels (default: the dataset's, 224 or 448)"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="images encoded at a time (default: 64)")
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="keep results, protocol, counts, model hash and versions here, and go on from it: what would come out the "
        "same is taken from it",
    )
    parser.add_argument("--again", action="store_true", help="start FILE anew instead of keeping its finished tasks")
    parser.add_argument(
        "--compare", metavar=("A", "B"), nargs=2, help="instead: two results files side by side, with intervals"
    )
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit status."""
    if args.compare:
        return _compare(args)
    if args.model is None:
        raise UserError("distill eval needs a model: distill eval MODEL task=dataset, or --compare A.json B.json.")
    suite = read_suite(args.words, args.data)
    target = Path(args.json) if args.json else None
    if target is not None and not target.resolve().parent.is_dir():
        raise UserError(f"--json {target}: there is no folder {target.resolve().parent}. Make it first.")
    if args.again and target is None:
        raise UserError("--again starts a results file anew: add --json FILE.")
    batch = args.batch if args.batch is not None else suite.batch or 64
    if batch < 1:
        raise UserError(f"--batch {batch}: it must be at least 1.")

    from distill.evals.report import identity, versions
    from distill.evals.store import Store
    from distill.evals.suite import run_suite
    from distill.models.sources import open_model

    device = choose_device(args.device)
    opened = open_model(args.model)
    model = opened.model.to(device)
    header = {
        "model": {"source": args.model, **identity(model)},
        "versions": versions(),
        "device": str(device),
    }
    store = Store(target, header, args.again)
    samples = args.samples if args.samples is not None else suite.samples
    size = args.size if args.size is not None else suite.size
    try:
        done = run_suite(model, suite.requests, store, samples=samples, size=size, batch=batch)
    except BaseException:
        if store.made:  # hours, perhaps, and without --json they are nowhere else
            _show(opened.facts, store, store.made)
        raise
    _show(opened.facts, store, suite.requests)
    for spec, pixels in done.sizes.items():
        if args.size is None and opened.facts.kind == "run" and pixels != opened.facts.image_size:
            print(f"{spec}: at {pixels} px; the model was trained at {opened.facts.image_size} px (--size sets it)")
    if done.there:
        print(f"taken from {target}, where they were finished: {', '.join(done.there)} (--again runs them again)")
    if target is not None:
        print(f"written: {target}")
    return 0


def _show(facts: SourceFacts, store: Store, labels: Iterable[str]) -> None:
    """Prints what the model is, and the table of these results."""
    from distill.evals.published import beside, variant_for
    from distill.evals.report import show_table

    results = {label: store.results[label] for label in labels}
    print(facts.line())
    show_table(results, beside(facts, results), None if facts.variant else variant_for(facts))


def _compare(args: argparse.Namespace) -> int:
    if args.model is not None or args.words:
        raise UserError("--compare takes two results files and nothing else: distill eval --compare A.json B.json.")

    from distill.evals.compare import compare_files
    from distill.evals.report import show_comparison

    first, second = map(Path, args.compare)
    found = compare_files(first, second)
    show_comparison(found.lines, first.stem, second.stem)
    for reason in found.refused:
        print(f"left out: {reason}")
    return 0


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
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"--device {name}: this machine has {count} CUDA GPU(s). Allowed: cuda:0 to cuda:{count - 1}.")
    return device
