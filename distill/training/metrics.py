"""Metric rows to metrics.csv, TensorBoard and, on request, Weights & Biases."""

from __future__ import annotations

import csv
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill.config.schema import LogConfig
from distill.errors import UserError

WANDB_ID = "wandb_id"  # a file in the run's folder


class MetricLog:
    """Writes one row a step. A resumed run drops rows past the checkpoint, so that every step appears once."""

    def __init__(self, folder: Path, cfg: LogConfig, start_step: int, run_name: str, config: dict[str, Any]):
        self.path = folder / "metrics.csv"
        self.columns: list[str] = []
        self._keep_until(start_step)
        self.board = _tensorboard(folder, start_step) if cfg.tensorboard else None
        self.wandb = _wandb(cfg.wandb, folder, run_name, config, start_step) if cfg.wandb else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a row; new columns rewrite the file once with empty cells before them.

        Raises UserError when the disk is full, or not to be written to.
        """
        try:
            self._write({"step": step, **values})
        except OSError as error:
            fix = "Free some space, or mend the rights, and continue with --resume."
            raise UserError(f"Cannot write {self.path}: {error.strerror or error}. {fix}") from error
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(values, step=step)

    def _write(self, row: dict[str, Any]) -> None:
        fresh = [c for c in row if c not in self.columns]
        if fresh:
            rows = read_metrics(self.path) if self.path.exists() else []
            self.columns += fresh
            self._rewrite([*rows, row])
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow({k: _text(v) for k, v in row.items()})

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()

    def _keep_until(self, step: int) -> None:
        if self.path.exists():
            rows = [r for r in read_metrics(self.path) if r["step"] <= step]
            self.columns = list(dict.fromkeys(c for r in rows for c in r))
            self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        partial = self.path.with_suffix(".csv.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows({k: _text(v) for k, v in row.items()} for row in rows)
        partial.replace(self.path)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv, numbers parsed, empty cells left out. A half-written last line is dropped."""
    with path.open(newline="") as file:
        raw = list(csv.DictReader(file))
    rows = []
    for line in raw:
        try:
            rows.append({k: float(v) for k, v in line.items() if k and v})
        except ValueError:
            continue
    return [r for r in rows if "step" in r]


def _text(value: float) -> str:
    return str(int(value)) if isinstance(value, int) else f"{value:.6g}"


def _tensorboard(folder: Path, start_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)


def check_logging(cfg: LogConfig) -> None:
    """Raises UserError where metrics are to go somewhere that this machine lacks the package for."""
    if cfg.wandb and find_spec("wandb") is None:
        raise UserError(
            f"log.wandb={cfg.wandb} needs the package wandb: pip install 'everypatch[wandb]', or set log.wandb=null."
        )


def _wandb(project: str, folder: Path, run_name: str, config: dict[str, Any], start_step: int) -> Any:
    check_logging(LogConfig(wandb=project))
    import wandb

    identity = _wandb_id(folder / WANDB_ID, run_name, start_step)
    return wandb.init(project=project, name=run_name, dir=str(folder), config=config, resume="allow", id=identity)


def _wandb_id(file: Path, run_name: str, start_step: int) -> str:
    """What a resumed run is known by there, and no other: rows of steps that an id has already are dropped."""
    if start_step > 0:
        return file.read_text() if file.exists() else run_name  # as it was for all
    identity = secrets.token_hex(8)
    file.write_text(identity)
    return identity
