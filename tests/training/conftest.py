"""What the training tests share: built but untrained runs, and a run's metrics."""

from __future__ import annotations

import pytest

from distill.config.load import load_config
from distill.config.schema import Config
from distill.data.loader import build_loader
from distill.data.sources import caption_texts, open_source
from distill.training.assemble import Assembly, assemble
from distill.training.metrics import read_metrics
from distill.views.batch import Batch


@pytest.fixture
def build(small):
    """Builds a small run without taking a step: `build(**changes) -> (Config, Assembly, its first Batch)`."""

    def make(**changes) -> tuple[Config, Assembly, Batch]:
        overrides = small(**changes)
        if "students" in changes:  # a list of its own
            overrides = {key: value for key, value in overrides.items() if not key.startswith("students.")}
        cfg = load_config("pretrain/scenes_tiny", overrides).config
        source = open_source(cfg.data)
        assembly = assemble(cfg, caption_texts(source, ["web", "synthetic", "detailed"], 100))
        batch = next(iter(build_loader(source, cfg, assembly.tokenizer, grid=(4, 4), start_step=0, rank=0, world=1)))
        assembly.teacher.to("cpu")
        return cfg, assembly, batch

    return make


@pytest.fixture
def rows():
    """`rows(folder)`: the rows of a run's metrics.csv."""
    return lambda folder: read_metrics(folder / "metrics.csv")


@pytest.fixture
def column(rows):
    """`column(folder, name)`: one metric of every row."""
    return lambda folder, name: [row[name] for row in rows(folder)]
