"""Stands in for `distill.study.cell` in tests: no training, plausible files, and the same contract.

It imports nothing of ours, so that starting one takes no time.

Settings come by environment: FAKE_FAIL (variants that fail), FAKE_STEPS and FAKE_PAUSE (seconds a step), FAKE_PICTURES,
FAKE_FINISHED (when a cell says that it was finished).
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

CLASSES = {"sky": "#7fb2e5", "grass": "#6aa84f", "house": "#b45f06", "boat": "#8e3b46"}


def quality(variant: str, seed: int) -> float:
    base = {"ibot": 0.08, "ibotpp": 0.2, "masked": 0.13, "visible": 0.18, "all": 0.19, "unmasked": 0.24}
    return base.get(variant, 0.1) + random.Random(f"{variant}{seed}").uniform(-0.01, 0.01)


def loss_curves(variant: str, ratio: float) -> dict[str, dict[str, list[float]]]:
    steps = [float(s) for s in range(1, 101)]
    fall = [math.exp(-3 * s / 100) for s in steps]
    stays = variant in ("ibot", "masked")
    values = {"patch_visible": [3.6 - 0.4 * (1 - f) if stays else 2.0 + 1.6 * f for f in fall]}
    if ratio:
        values["patch_masked"] = [2.6 + 1.4 * f for f in fall]
    return {term: {"step": steps, "value": curve} for term, curve in values.items()}


def write_json(path: Path, tree: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(tree))
    partial.replace(path)


def draw(folder: Path, score: float) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in CLASSES.values()], dtype=np.uint8)
    noise = np.random.default_rng(int(score * 1000))
    for number in range(6):
        truth = np.zeros((64, 64), dtype=int)
        truth[30 + number * 3 :] = 1
        truth[20:45, 8 + number * 5 : 26 + number * 5] = 2
        truth[40:50, 40:60] = 3
        image = np.clip(colours[truth] + rng.normal(0, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
        wrong = noise.random((8, 8)).repeat(8, 0).repeat(8, 1) > 3 * score
        seen = np.where(wrong, noise.integers(0, 4, (8, 8)).repeat(8, 0).repeat(8, 1), truth)
        Image.fromarray(image).save(folder / f"image_{number}.png")
        Image.fromarray(colours[truth]).save(folder / f"truth_{number}.png")
        for kind in ("pca", "final", "value"):
            Image.fromarray(colours[seen]).save(folder / f"{kind}_{number}.png")
    legend = [{"name": n, "colour": c} for n, c in CLASSES.items()]
    panels = {
        "pca": "PCA of patch features",
        "final": "Segmentation, final tokens",
        "value": "Segmentation, value path",
    }
    write_json(folder / "pictures.json", {"images": 6, "panels": panels, "legend": legend})


def result(spec: dict[str, Any]) -> dict[str, Any]:
    score = quality(spec["variant"], spec["seed"])
    curves = loss_curves(spec["variant"], spec["content"]["mask.ratio"])
    metrics = {
        "zeroshot_seg/miou_final": score,
        "zeroshot_seg/miou_value": score * 0.8 + 0.02,
        "zeroshot_seg/miou_chance": 0.031,
        "linear_patch/accuracy": 0.5 + score,
        "linear_patch/accuracy_constant": 0.21,
        "knn/top1_cls1": 0.4 + score,
        "retrieval/i2t_r1_both": 0.3 + score / 2,
        "retrieval/t2i_r1_both": 0.28 + score / 2,
    }
    if spec["content"]["teacher.mode"] == "ema":
        metrics |= {f"average/{name}": value + 0.01 for name, value in metrics.items()}
    teacher = spec["content"]["teacher.mode"] == "frozen"
    return {
        **{k: spec[k] for k in ("variant", "seed", "address", "content", "teacher", "eval")},
        "metrics": {**metrics, "train/patch_visible": curves["patch_visible"]["value"][-1]},
        "curves": curves,
        "cost": {
            "parameters": 1_310_000,
            "train_seconds": 132.0,
            "step_ms": 210.0,
            "peak_memory_mb": 812.0,
            "teacher_forwards": 38400 if teacher else 0,
        },
        "environment": {"device": "Test CPU", "packages": {"everypatch": "0.1.0", "torch": "2.9.0"}},
        "code": "0123456789ab",
        "finished": os.environ.get("FAKE_FINISHED", "2026-01-01T00:00:00Z"),
        "shared": None,
    }


def end_with_parent() -> None:
    """As the real one: standard input ends with the runner."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def main(path: Path) -> int:
    spec = json.loads(path.read_text())
    folder = Path(spec["folder"])
    steps, pause = int(os.environ.get("FAKE_STEPS", "20")), float(os.environ.get("FAKE_PAUSE", "0"))
    if spec["overrides"].get("teacher.mode") == "frozen":
        source = Path(spec["overrides"]["teacher.source"].removeprefix("run:"))
        assert any((source / "checkpoints").glob("*.pt")), f"no teacher in {source}"
    run = folder / "run"
    state = run / "state.json"
    done = json.loads(state.read_text())["step"] if state.exists() else 0
    print(f"started at step {done}", flush=True)
    try:
        while done < steps:
            time.sleep(pause)
            done += 1
            seen = {
                "step": done,
                "steps": steps,
                "images_per_s": 300.0,
                "data_wait": 0.02,
                "loss": 5.0,
                "seconds": done,
            }
            write_json(run / "progress.json", seen)
            if spec["variant"] in os.environ.get("FAKE_FAIL", "").split(",") and done == steps // 2:
                raise RuntimeError("the loss is NaN")
    except KeyboardInterrupt:
        write_json(state, {"step": done})
        return 130
    write_json(run / "checkpoints" / f"step_{spec['content']['train.steps']:08d}.pt", {})
    if os.environ.get("FAKE_PICTURES"):
        draw(folder / "pictures", quality(spec["variant"], spec["seed"]))
    write_json(folder / "cell.json", result(spec))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent()
    sys.exit(main(Path(sys.argv[1])))
