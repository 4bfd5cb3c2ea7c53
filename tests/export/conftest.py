"""Tiny models of our own, saved as a source."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from distill.models.arch import Arch
from distill.models.loading import save_model
from distill.models.pair import ImageTextModel
from distill.models.text import TextTower
from distill.models.tokenizers import Tokenizer
from distill.models.tokenizers.sentence_piece import SentencePieceTokenizer
from distill.models.vision import VisionTower

SHAPE = {"patch": 14, "width": 64, "depth": 2, "heads": 1, "text_layers": 1, "text_mlp": 96}


@pytest.fixture(scope="session")
def pieces() -> SentencePieceTokenizer:
    path = Path(__file__).parents[1] / "models" / "sources" / "conftest.py"
    spec = importlib.util.spec_from_file_location("sources_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SentencePieceTokenizer(module.train_tokenizer())


@pytest.fixture
def saved(tmp_path, pieces):
    """`saved(ffn="gelu", ...)` -> path of a model whose every weight, biases too, is random. `size`: in pixels."""

    def make(
        ffn: str = "gelu",
        gelu: str = "tanh",
        cls: int = 2,
        eps: float = 1e-6,
        size: int = 56,
        tokenizer: Tokenizer = pieces,
        **shape: int,
    ) -> Path:
        torch.manual_seed(0)
        arch = Arch("small", ffn=ffn, **({"mlp": 96 if ffn == "gelu" else 88} | SHAPE | shape))
        image = VisionTower(arch, cls_tokens=cls, position_grid=4, gelu=gelu)
        text = TextTower(arch, tokenizer.vocabulary, context=16, norm_eps=eps)
        model = ImageTextModel(image, text, tokenizer, temperature=0.05, image_size=size)
        with torch.no_grad():
            for parameter in (p for name, p in model.named_parameters() if name != "log_temperature"):
                parameter.add_(0.1 * torch.randn_like(parameter))
        path = tmp_path / "small.pt"
        save_model(model, path)
        return path

    return make
