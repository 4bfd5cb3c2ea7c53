"""Small models shared by the tests of this folder."""

from __future__ import annotations

import pytest
import torch

from distill.models.arch import Arch
from distill.models.pair import ImageTextModel
from distill.models.text import TextTower
from distill.models.tokenizers.words import WordsTokenizer
from distill.models.vision import VisionTower

SMALL = Arch("small", patch=4, width=16, depth=2, heads=2, mlp=24, ffn="gelu", text_layers=2, text_mlp=32)


@pytest.fixture
def small() -> Arch:
    return SMALL


@pytest.fixture
def model() -> ImageTextModel:
    torch.manual_seed(0)
    tokenizer = WordsTokenizer(["red", "blue", "square", "disc", "on", "a", "wall"])
    image = VisionTower(SMALL, position_grid=4)
    text = TextTower(SMALL, tokenizer.vocabulary, context=6)
    return ImageTextModel(image, text, tokenizer, temperature=0.05, image_size=16).eval()
