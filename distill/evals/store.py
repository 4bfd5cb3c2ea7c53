"""The results file of `distill eval`: finished tasks are kept in it, and not run again.

    {"model": {"source", "sha256"}, "versions", "device", "results": {label: {...}}}

Each result is a `TaskResult` with `key`, `model` and `versions` of its own. `key` is a hash of the model's weights, the
task with all its options, the dataset and its size: as long as it is the same, running again would give the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.evals.datasets import EvalDataset
from distill.evals.requests import Request


def key_of(sha256: str, request: Request, options: Any, dataset: EvalDataset) -> str:
    """What a result depends on, as a hash. `options`: the task's dataclass, resolved."""
    content = {
        "model": sha256,
        "task": request.task,
        "options": asdict(options),
        "dataset": [request.dataset, dataset.name, len(dataset), dataset.size, dataset.prompt_names],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


class Store:
    """Results by label, written to `path` (None: nowhere) whenever one is added."""

    def __init__(self, path: Path | None, header: Mapping[str, Any], again: bool = False):
        self.path, self.header = path, dict(header)
        self.results: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists() and not again:
            content = read_results(path)
            if content["model"]["sha256"] != header["model"]["sha256"]:
                raise UserError(
                    f"{path} holds results of another model ({content['model']['source']}, "
                    f"{content['model']['sha256'][:12]}). Choose another --json FILE, or replace them with --again."
                )
            self.results = content["results"]

    def finished(self, label: str, key: str) -> dict[str, Any] | None:
        """The kept result, if it is what running again would give."""
        result = self.results.get(label)
        return result if result is not None and result.get("key") == key else None

    def add(self, label: str, key: str, result: dict[str, Any]) -> None:
        """Keeps a result and writes the file, whole or not at all."""
        self.results[label] = {"key": key, **result, "model": self.header["model"], "versions": self.header["versions"]}
        if self.path is not None:
            content = {**self.header, "results": self.results}
            beside = self.path.with_name(self.path.name + ".part")
            beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(beside, self.path)


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file; UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = isinstance(content["results"], dict) and isinstance(content["model"]["sha256"], str)
        known = known and all({"metrics", "counts", "dataset"} <= set(entry) for entry in content["results"].values())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Give a file that distill eval --json wrote.") from error
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{path} holds no results of distill eval. Give a file that distill eval --json wrote.")
    return content
