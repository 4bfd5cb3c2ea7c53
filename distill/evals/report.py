"""What is printed and stored beside the numbers: the table, the model's hash, the versions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping

import torch
from torch import nn

from distill.evals.registry import find_task
from distill.evals.results import TaskResult


def show_table(results: Mapping[str, TaskResult]) -> None:
    """Prints the headline metrics of each task, in percent."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("task", "dataset", "metric"):
        table.add_column(heading, overflow="fold")
    table.add_column("%", justify="right")
    for task, result in results.items():
        names = [name for name in find_task(task).headline if name in result.metrics]
        for row, name in enumerate(names):
            first = (task, f"{result.dataset}, {result.counts['images']} images") if row == 0 else ("", "")
            table.add_row(*first, name, f"{100 * result.metrics[name]:.1f}", end_section=row == len(names) - 1)
    Console().print(table)


def model_hash(model: nn.Module) -> str:
    """SHA-256, hex, over names, types, shapes and values of the model's weights and buffers, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    import numpy
    import PIL
    import timm

    from distill import __version__

    return {
        "everypatch": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
    }
