"""What is printed and stored beside the numbers: the table, the model's hash, the versions."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.evals.registry import find_task
from distill.evals.results import UNIT
from distill.terminal import output

if TYPE_CHECKING:
    from distill.evals.compare import Line
    from distill.evals.published import Published


def show_table(
    results: Mapping[str, Mapping[str, Any]],
    paper: Mapping[tuple[str, str], Published] | None = None,
    nearest: str | None = None,
) -> None:
    """Prints the headline metrics of each result (`TaskResult.as_dict`), by label.

    `paper`: published numbers by label and metric; where there are any, they get a column. They are of the same model,
    or of the variant `nearest` to it.
    """
    from rich.table import Table

    table = Table()
    for heading in ("task", "dataset"):
        table.add_column(heading, overflow="fold")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    if paper:
        table.add_column("paper", justify="right", no_wrap=True)
        whose = f"paper's numbers for the nearest variant, {nearest}" if nearest else "paper"
        table.caption = f"{whose}: " + "; ".join(sorted({row.source for row in paper.values()}))
    for label, result in results.items():
        names = [name for name in find_task(result["task"]).headline if name in result["metrics"]]
        for row, name in enumerate(names):
            first = (label, f"{result['dataset']}, {result['counts']['images']} images") if row == 0 else ("", "")
            unit = unit_of(result, name)
            values = [figure(result["metrics"][name], unit)]
            if paper:
                known = paper.get((label, name))
                values.append("" if known is None else figure(known.value, unit))
            table.add_row(*first, name, *values, end_section=row == len(names) - 1)
    output().print(table)


def show_comparison(lines: Sequence[Line], first: str, second: str) -> None:
    """Prints two models' metrics side by side; the interval is of the difference where images are pairs."""
    from rich.table import Table

    table = Table(caption="intervals: bootstrap over images, 95 %")
    table.add_column("task, dataset", overflow="fold", min_width=8)
    table.add_column("metric", no_wrap=True)
    for heading in (first, second, "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for at, line in enumerate(lines):
        place = sum(other.label == line.label for other in lines[:at])
        last = at + 1 == len(lines) or lines[at + 1].label != line.label
        apart = line.difference_interval is None
        of_both = (line.label, line.dataset)  # one below the other, beside the metrics
        table.add_row(
            "\n".join(of_both[place:]) if last else "".join(of_both[place : place + 1]),
            line.metric,
            figure(line.first, line.unit, line.first_interval if apart else None),
            figure(line.second, line.unit, line.second_interval if apart else None),
            figure(line.second - line.first, line.unit, line.difference_interval, "+"),
            end_section=last,
        )
    output().print(table)


def unit_of(result: Mapping[str, Any], metric: str) -> str | None:
    """The unit of a result's metric, None for a share; of lengths the dataset's own, where it has one."""
    unit = find_task(result["task"]).units.get(metric)
    return unit and result["protocol"].get(UNIT, unit)


def figure(value: float, unit: str | None, interval: tuple[float, float] | None = None, sign: str = "") -> str:
    """`12.3 %` or `12.3 % [11.0, 13.5]` of a share (unit None), `0.374 m` of other units."""
    scale, form = (100, f"{sign}.1f") if unit is None else (1, f"{sign}.3f")
    text = f"{scale * value:{form}} {unit or '%'}".strip()
    return text if interval is None else f"{text} [{scale * interval[0]:{form}}, {scale * interval[1]:{form}}]"


def identity(model: Any) -> dict[str, str | None]:
    """What of a model decides its features, as SHA-256 in hex: weights, tokenizer (None without one) and towers.

    `towers` is of what the weights do not tell: how towers of ours are configured; the normalisation, the kinds of
    layers and the context of others.
    """
    tokenizer = getattr(model, "tokenizer", None)
    towers = [_tower(tower) for tower in (model.image, getattr(model, "text", None))]
    return {
        "sha256": model_hash(model),
        "tokenizer": None if tokenizer is None else _hash_json(tokenizer.state()),
        "towers": _hash_json(towers),
    }


def model_hash(model: nn.Module) -> str:
    """SHA-256, hex, over names, types, shapes and values of the model's weights and buffers, in name order."""
    return _hash_tensors(model.state_dict())


def _tower(tower: Any) -> Any:
    """JSON-able."""
    if tower is None or hasattr(tower, "config"):
        return None if tower is None else tower.config()
    kept = tower.state_dict()
    buffers = {name: value for name, value in tower.named_buffers() if name not in kept}
    layers = [(name, type(layer).__name__) for name, layer in tower.named_modules()]
    return [_hash_tensors(buffers), layers, getattr(tower, "context", None)]


def _hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hash_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
