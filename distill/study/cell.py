"""One cell in a process of its own: `python -m distill.study.cell SPEC.json`.

Trains (or continues, or finds the run finished), evaluates, draws the pictures, and writes cell.json last.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.study.averages import PREFIX, averages_trunk
from distill.study.code import code_digest
from distill.study.curves import end_values, loss_curves
from distill.study.store import COST, LOCK, PICTURES, PROGRESS, RESULT, RUN, read_json, write_json

FORWARDS = ("frozen", "ema", "cotrained")  # teacher modes with a trunk pass of their own


def main(spec_path: Path) -> int:
    """Exit status: 0 done, 2 bad input, 130 interrupted with the state saved; anything else is a fault."""
    spec = json.loads(spec_path.read_text(encoding="utf-8"))
    folder = Path(spec["folder"])
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits while the cell of a killed runner writes its last checkpoint
            write_json(folder / RESULT, run_cell(spec))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def run_cell(spec: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate; returns the content of cell.json."""
    from distill.training.metrics import read_metrics

    folder = Path(spec["folder"])
    train_cell(spec, folder)
    student = spec["content"]["students.0.name"]
    rows = read_metrics(folder / RUN / "metrics.csv")
    curves = loss_curves(rows, student)
    began = time.monotonic()
    scores = evaluate_cell(spec, folder)
    return {
        "variant": spec["variant"],
        "seed": spec["seed"],
        "address": spec["address"],
        "content": spec["content"],
        "teacher": spec["teacher"],
        "eval": spec["eval"],
        "metrics": {**scores, **end_values(curves)},
        "curves": curves,
        "cost": {**cell_cost(spec, folder, rows), "eval_seconds": time.monotonic() - began},
        "environment": {**(read_json(folder / RUN / "env.json") or {}), "precision": settled_precision(folder / RUN)},
        "code": code_digest(),
        **weights_of(folder / RUN),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "shared": None,
    }


def train_cell(spec: dict[str, Any], folder: Path) -> None:
    """Run the cell's recipe in `folder`/run, from its newest checkpoint if it has one; a finished run is left alone."""
    from distill.evals.run import check_evaluation
    from distill.training.run import run

    check_evaluation(spec["eval"]["tasks"], spec["eval"]["dataset"])  # now, rather than after the training
    resume = (folder / RUN).exists()
    run(spec["base"], {**spec["overrides"], "train.threads": spec["threads"]}, resume=resume, runs=folder)
    peak = peak_memory_mb()
    before = read_json(folder / COST) or {}
    write_json(folder / COST, {"peak_memory_mb": max(peak, before.get("peak_memory_mb", 0.0))})


def evaluate_cell(spec: dict[str, Any], folder: Path) -> dict[str, float]:
    """Metrics by `task/metric`, those of an averaged trunk too; draws the pictures of the first test images."""
    from distill.evals.run import evaluate
    from distill.models.sources import load
    from distill.study.pictures import draw_pictures

    wanted = spec["eval"]
    tell(folder, "evaluating")
    model = load(f"run:{folder / RUN}")
    size = spec["size"]
    models = {"": model}
    if averages_trunk(spec["content"]):
        models[PREFIX] = load(f"run:{folder / RUN}#teacher")
    scores: dict[str, float] = {}
    for prefix, scored in models.items():
        results = evaluate(scored, wanted["tasks"], wanted["dataset"], samples=wanted["samples"], size=size)
        metrics = {f"{task}/{name}": value for task, r in results.items() for name, value in r.metrics.items()}
        scores |= {prefix + name: value for name, value in metrics.items()}
    tell(folder, "drawing pictures")
    draw_pictures(model, wanted["dataset"], size, folder / PICTURES)
    return scores


def weights_of(run: Path) -> dict[str, str | None]:
    """SHA-256 of the run's last checkpoint, and of the frozen teacher that it learnt from (None without)."""
    from distill.models.loading import checkpoint_files, find_checkpoint, read_checkpoint
    from distill.models.sources.base import files_hash

    file = find_checkpoint(run)
    return {"weights": files_hash(checkpoint_files(file)), "taught_by": read_checkpoint(file)["teacher"]["sha256"]}


def settled_precision(run: Path) -> str:
    """What the run computed in; where the recipe says auto, the machine decided."""
    from omegaconf import OmegaConf

    return str(OmegaConf.load(run / "resolved.yaml").train.precision)


def tell(folder: Path, stage: str) -> None:
    """Let the runner's display show what the cell is at, beyond training steps."""
    seen = read_json(folder / RUN / PROGRESS) or {}
    write_json(folder / RUN / PROGRESS, {**seen, "stage": stage})


def cell_cost(spec: dict[str, Any], folder: Path, rows: list[dict[str, float]]) -> dict[str, float]:
    """Parameters, seconds, memory and teacher passes of a cell's training.

    `parameters` counts the student's two towers; `trained`, `averaged` and `frozen` everything that the run holds.
    `teacher_forwards` counts images that went through a teacher trunk of its own.
    """
    content = spec["content"]
    receipt = read_json(folder / RUN / "receipts.json") or {}
    part = receipt.get("by_part", {}).get(content["students.0.name"], {})
    seconds = rows[-1].get("seconds", 0.0) if rows else 0.0
    steps, batch = content["train.steps"], content["train.batch"]
    return {
        "parameters": part.get("image", 0) + part.get("text", 0),
        **{key: receipt.get(key, 0) for key in ("trained", "averaged", "frozen")},
        "train_seconds": seconds,
        "step_ms": 1000 * seconds / steps,
        "images_per_s": steps * batch / seconds if seconds else 0.0,
        "teacher_forwards": teacher_images(content, folder / RUN),
        "threads": spec["threads"],
        **(read_json(folder / COST) or {}),
    }


def teacher_images(content: dict[str, Any], run: Path) -> int:
    """Images that went through a teacher trunk of its own; where targets are kept on disk, the run has counted them."""
    taught = content["objective.patch.weight"] > 0 or content["objective.cls.weight"] > 0
    if content["teacher.mode"] not in FORWARDS or not taught:
        return 0
    if content.get("teacher.cache.path") is None:
        return content["train.steps"] * content["train.batch"]
    from distill.models.loading import find_checkpoint, read_checkpoint

    passes = read_checkpoint(find_checkpoint(run))["teacher"]["state"]["forwards"]  # micro-batches of one rank
    return passes * content["train.batch"] // content["train.accumulate"]


def peak_memory_mb() -> float:
    """The most memory held so far: of the GPU where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / 2**20 if sys.platform == "darwin" else held / 2**10  # bytes there, KiB here


def end_with_parent() -> None:
    """Stop (as on Ctrl-C) when the runner ends, however it ends: standard input is a pipe that it holds open."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner in the background of a script ignores it
    source = sys.stdin.fileno()
    if not stat.S_ISFIFO(os.fstat(source).st_mode):
        return

    def wait() -> None:
        while os.read(source, 1):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(Path(sys.argv[1])))
