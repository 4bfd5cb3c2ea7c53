"""The results file of `distill eval`: finished tasks are kept in it, and not run again.

    {"model": {"source", "sha256", "tokenizer", "towers"}, "versions", "device", "results": {label: {...}}}

Each result is a `TaskResult` with `inputs`, `model` and `versions` of its own. It is taken again while its `inputs` are
what they would be now:

- the release of this package, and the `revision` of the task and of what all tasks share;
- the model's weights, tokenizer and towers (`distill.evals.report.identity`);
- the task's options that move numbers; of files that they name, the content;
- the dataset as it was asked for, `samples`, the size of the images, and what is in the evaluated split and in the one
  that the task fits something on (`distill.evals.datasets.contents` says what is noticed there, and what is not).

Running again would then give the same up to rounding, which depends on machine, device, batch size and the versions of
other packages. A probe that is trained on images of several shapes also sees them in an order that depends on the batch
size. A result with other `inputs`, or without, as earlier versions wrote them, can be read and is computed again.

Several evaluations of one model may write to one file: each keeps what the others have added.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distill import __version__
from distill.errors import UserError
from distill.evals.datasets import EvalDataset
from distill.evals.datasets.contents import seen
from distill.evals.registry import find_task
from distill.evals.requests import Request
from distill.evals.results import ABSENT, first_difference
from distill.models.sources.base import files_hash

REVISION = 2  # raise it when all tasks come to give other numbers: what they share reads, resizes or encodes otherwise


def inputs_of(model: Mapping[str, Any], request: Request, dataset: EvalDataset, samples: int | None) -> dict[str, Any]:
    """What a result depends on, JSON-able. `model`: as in the file; `dataset`: open, with at most `samples` images."""
    task = find_task(request.task)
    options = task.options_from(request.options, dataset)
    settings = task.settings(options)
    files = {name: Path(settings.pop(name)).expanduser() for name in task.files if settings[name] is not None}
    inputs = {
        "version": __version__,
        "revision": [REVISION, task.revision],
        "model": {name: value for name, value in model.items() if name != "source"},
        "task": request.task,
        "options": settings,
        "files": {name: files_hash([path]) if path.is_file() else None for name, path in files.items()},
        "dataset": request.dataset,
        "samples": samples,
        "size": dataset.size,
        "images": seen(dataset),
        "fitted": seen(dataset.train()) if task.fits(options) else None,
    }
    return json.loads(json.dumps(inputs, default=str))


class Store:
    """Results by label, written to `path` (None: nowhere) whenever one is added."""

    def __init__(self, path: Path | None, header: Mapping[str, Any], again: bool = False):
        self.path, self.header = path, dict(header)
        self.results: dict[str, dict[str, Any]] = {}
        self.made: list[str] = []  # labels that were added
        self.anew = again  # what is in the file goes with the first write
        if path is not None and path.exists() and not again:
            content = read_results(path)
            if not same_model(there := content["model"], header["model"]):
                other = ", with another tokenizer" if there["sha256"] == header["model"]["sha256"] else ""
                raise UserError(
                    f"{path} holds results of another model ({there['source']}, {there['sha256'][:12]}{other}). "
                    f"Choose another --json FILE, or replace them with --again."
                )
            self.results = content["results"]

    def finished(self, label: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The kept result, if it is what running again would give."""
        result = self.results.get(label)
        return result if result is not None and result.get("inputs") == inputs else None

    def changed(self, label: str, inputs: Mapping[str, Any]) -> str | None:
        """Why a kept result is not taken again, in a few words; None where there is none, or it is."""
        result = self.results.get(label)
        if result is None or result.get("inputs") == inputs:
            return None
        if "inputs" not in result:
            return "an earlier version wrote it, without all that it depends on"
        found = first_difference(result["inputs"], inputs)
        assert found is not None
        part, _, name = found.key.partition(".")
        if name in ("contents", "files"):
            return f"the files of {inputs[part]['name']} have changed"
        return f"{found.key} was {_shown(found.one)}, is {_shown(found.two)}"

    def _merge(self) -> None:
        """Takes in what another process has added to the file since, but for what was made here."""
        if self.path is None or self.anew or not self.path.exists():
            return
        content = read_results(self.path)
        if same_model(content["model"], self.header["model"]):
            self.results |= {label: result for label, result in content["results"].items() if label not in self.made}

    def add(self, label: str, inputs: Mapping[str, Any], result: dict[str, Any]) -> None:
        """Keeps a result and writes the file, whole or not at all; other processes may add to it meanwhile."""
        made = {"inputs": inputs, "model": self.header["model"], "versions": self.header["versions"]}
        self.results[label] = {**result, **made}
        self.made.append(label)
        if self.path is not None:
            with _alone(self.path):
                self._merge()
                self.anew = False
                content = {**self.header, "results": self.results}
                beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
                beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
                os.replace(beside, self.path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is in here with the same `path`. The lock is a hidden file beside it, which stays."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks: a finished result is written all the same
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def same_model(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Whether weights are the same, and tokenizers where both say (files of earlier versions do not)."""
    known = [name for name in ("sha256", "tokenizer") if name in one and name in two]
    return all(one[name] == two[name] for name in known)


def _shown(value: Any) -> str:
    """A value in a message; of a digest the beginning."""
    text = "not there" if value is ABSENT else repr(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


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
