"""Exports that transformers loads."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import distill
from distill.errors import UserError
from distill.models.sources import describe
from distill.models.tokenizers.words import WordsTokenizer

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'everypatch[hf]'")
pytest.importorskip("transformers.models.tipsv2", reason="this transformers has no TIPSv2 yet: install 5.20 or newer")


@pytest.mark.parametrize("shape", [{}, {"ffn": "swiglu"}, {"gelu": "erf", "eps": 1e-5, "mlp": 99}])
@torch.no_grad()
def test_transformers_loads_the_folder(saved, tmp_path, shape):
    path = saved(**shape)
    done = distill.export(path, "hf", tmp_path / "out")
    model, again = distill.load(path), transformers.Tipsv2Model.from_pretrained(done.folder).eval()
    images = torch.rand(1, 3, 42, 70)
    assert torch.allclose(again.vision_model(images).last_hidden_state[:, :2], model.image(images).cls, atol=1e-4)
    assert again.temperature.item() == pytest.approx(0.05)
    processor = transformers.AutoImageProcessor.from_pretrained(done.folder)
    assert (processor.size["height"], processor.do_normalize) == (56, False)
    own = distill.load(f"hf:{done.folder}")
    assert torch.allclose(own.encode_text(["a red disc"]), model.encode_text(["a red disc"]), atol=1e-5)


@torch.no_grad()
def test_what_is_read_back_has_the_length_of_texts_and_the_size_of_images(saved, tmp_path):
    path = saved(size=84)  # positions for 56 px, texts of 16 tokens
    done = distill.export(path, "hf", tmp_path / "out")
    model, own = distill.load(path), distill.load(f"hf:{done.folder}")
    assert (own.text.context, own.image_size, own.image.position_grid) == (16, 84, 4)
    facts = describe(f"hf:{done.folder}")
    assert facts.image_size == 84
    assert "16 a text" in facts.texts
    picture = Image.new("RGB", (50, 40), "red")
    assert torch.equal(own.preprocess(picture), model.preprocess(picture))
    long = ["a red disc on a wall " * 20]
    assert torch.allclose(own.encode_text(long), model.encode_text(long), atol=1e-5)


def test_what_is_read_back_has_a_tokenizer_of_any_kind(saved, tmp_path):
    path = saved(tokenizer=WordsTokenizer(["red", "disc", "a"]))
    done = distill.export(path, "hf", tmp_path / "out")
    again, model = distill.load(f"hf:{done.folder}"), distill.load(path)
    assert torch.allclose(again.encode_text(["a red disc"]), model.encode_text(["a red disc"]), atol=1e-5)
    assert "no tokenizer" not in describe(f"hf:{done.folder}").texts


@pytest.mark.parametrize(
    ("shape", "match"), [({"cls": 1}, "1 CLS token"), ({"ffn": "swiglu", "mlp": 84}, "SwiGLU of 84")]
)
def test_what_transformers_cannot_hold_is_refused(saved, tmp_path, shape, match):
    with pytest.raises(UserError, match=match):
        distill.export(saved(**shape), "hf", tmp_path / "out")
