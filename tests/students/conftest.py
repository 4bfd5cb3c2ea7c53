"""Small recipes and models."""

from __future__ import annotations

import pytest
import torch

import students
from distill.config.schema import Config, StudentConfig, TextConfig, ViewsConfig, VisionConfig
from distill.models.pair import ImageTextModel
from distill.models.tokenizers.words import WordsTokenizer


@pytest.fixture
def cfg() -> Config:
    return Config(
        views=ViewsConfig(global_size=32), vision=VisionConfig(position_grid=4), text=TextConfig(layers=1, context=8)
    )


@pytest.fixture
def build(cfg):
    """`build(depth, seed)`: a tiny/8 model of that depth."""

    def make(depth: int = 2, seed: int = 0, arch: str = "tiny/8") -> ImageTextModel:
        torch.manual_seed(seed)
        return students.build_model(StudentConfig(arch=arch, depth=depth), cfg, WordsTokenizer(["red", "disc"]))

    return make
