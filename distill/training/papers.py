"""What a run's folder says of it: the recipe as asked and as resolved, where it ran, what it trains, and from what."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from distill.config.load import Resolved
from distill.config.schema import Config
from distill.errors import UserError
from distill.models.sources.origins import FILE as SOURCES
from distill.models.sources.origins import Origin, origins
from students.initialisation import FROM_TEACHER
from teachers.sources import OpenedTeacher

PAPERS = ("config.yaml", "resolved.yaml", "env.json", "receipts.json", SOURCES)


def write_papers(
    folder: Path, resolved: Resolved, fabric: Fabric, counts: dict[str, Any], sources: list[Origin]
) -> None:
    """config.yaml (as asked), resolved.yaml (every value and its source), env.json, receipts.json, sources.json."""
    ran, counted, taken = (json.dumps(part, indent=2) + "\n" for part in (environment(fabric), counts, sources))
    texts = (resolved.asked, resolved.to_yaml(), ran, counted, taken)
    try:
        for name, text in zip(PAPERS, texts, strict=True):
            (folder / name).write_text(text)
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror}. Free some space or choose --runs DIR.") from error


def taken_from(cfg: Config, teacher: OpenedTeacher | None) -> list[Origin]:
    """The frozen teacher, what students and texts start from, and an earlier stage."""
    named = {} if teacher is None else {"teacher.source": teacher.source}
    named |= {f"students.{i}.init": student.init for i, student in enumerate(cfg.students)}
    named |= {"text.init": cfg.text.init, "train.stage_from": cfg.train.stage_from or "scratch"}
    known = {} if teacher is None else {teacher.source: teacher.facts}
    return origins({key: name for key, name in named.items() if name not in ("scratch", *FROM_TEACHER)}, known)


def kept_sources(folder: Path) -> list[Origin] | None:
    """What `taken_from` once gave for the run in `folder`; None where it was not kept."""
    try:
        return json.loads((folder / SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def environment(fabric: Fabric | None = None) -> dict[str, Any]:
    """Versions, hardware and time, for results that can be traced."""
    packages = ("everypatch", "torch", "torchvision", "timm", "lightning", "numpy", "pillow")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world": 1 if fabric is None else fabric.world_size,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
