from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from distill.errors import UserError
from distill.models.pair import ImageTextModel
from distill.models.text import TextTower
from distill.models.tokenizers.words import WordsTokenizer
from distill.models.vision import VisionTower


def test_encode_image_gives_cls_and_a_grid_row_by_row(model):
    images = torch.rand(2, 3, 8, 12)
    cls, patches = model.encode_image(images)
    tokens = model.image(images)
    assert cls.shape == (2, 2, 16)
    assert patches.shape == (2, 2, 3, 16)
    assert torch.equal(patches[:, 1, 0], tokens.patches[:, 3])
    assert not patches.requires_grad
    by_value = model.encode_image(images, values=True)[1]
    assert torch.equal(by_value.flatten(1, 2), model.image(images, values=True).patches)
    for ours, expected in zip(model.encode_dense(images), (cls, patches, by_value), strict=True):
        assert torch.equal(ours, expected)


def test_encode_text_is_the_tower_on_tokens(model):
    texts = ["a red square", "blue disc on a wall and more words"]
    out = model.encode_text(texts)
    assert out.shape == (2, 16)
    assert not out.requires_grad
    ids, valid, cut = model.tokenizer.encode(texts, 6)
    assert cut == 1
    assert torch.equal(out, model.text(torch.from_numpy(ids), torch.from_numpy(valid)))
    with pytest.raises(UserError, match="empty"):
        model.encode_text([""])


def test_one_text_or_image_alone_is_told_to_be_a_batch(model):
    with pytest.raises(UserError, match=r"'red' is one text: write \['red'\]"):
        model.encode_text("red")  # not three letters
    with pytest.raises(UserError, match="Text 1 is None, of type NoneType: give strings"):
        model.encode_text(["red", None])
    with pytest.raises(UserError, match=r"shape \[3, 8, 8\]\. Allowed: \[batch, 3, height, width\]; images\[None\]"):
        model.encode_image(torch.rand(3, 8, 8))
    with pytest.raises(UserError, match=r"shape \[1, 1, 8, 8\].*convert them to RGB"):
        model.encode_image(torch.rand(1, 1, 8, 8))


def test_sizes_that_do_not_fit_are_refused(model):
    with pytest.raises(UserError, match="9x8 is not a multiple of the patch size 4"):
        model.encode_image(torch.rand(1, 3, 9, 8))


def test_temperature_is_positive_learned_and_starts_as_given(model):
    assert model.temperature.item() == pytest.approx(0.05)
    model.temperature.backward()
    assert model.log_temperature.grad.item() == pytest.approx(0.05)
    assert model.log_temperature.item() == pytest.approx(math.log(0.05))


def test_preprocess_uses_the_models_size(model):
    picture = Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8))
    assert model.preprocess(picture).shape == (3, 16, 16)
    assert model.preprocess(picture, size=8, fit="aspect").shape == (3, 8, 12)


def test_spec_rebuilds_the_same_model_bit_for_bit(model):
    spec = json.loads(json.dumps(model.spec()))
    again = ImageTextModel.from_spec(spec)
    again.load_state_dict(model.state_dict())
    again.eval()
    assert again.spec() == model.spec()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.encode_image(images)[1], model.encode_image(images)[1])
    assert torch.equal(again.encode_text(["a red disc"]), model.encode_text(["a red disc"]))
    assert torch.equal(again.temperature, model.temperature)
    picture = Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8))
    assert again.preprocess(picture).shape == model.preprocess(picture).shape


@pytest.mark.parametrize(("frozen", "trained"), [("vision", "text"), ("text", "vision")])
def test_a_frozen_tower_stays_frozen_and_in_evaluation_mode(model, frozen, trained):
    model.freeze([frozen])
    torch.nn.Sequential(model).train()  # a trainer calls train() on what contains the model
    assert not any(p.requires_grad for p in model.tower(frozen).parameters())
    assert not any(m.training for m in model.tower(frozen).modules())
    assert all(p.requires_grad for p in model.tower(trained).parameters())
    assert all(m.training for m in model.tower(trained).modules())
    assert model.log_temperature.requires_grad


def test_unknown_tower(model):
    with pytest.raises(UserError, match=r"Unknown tower 'image'\. Allowed: text, vision"):
        model.freeze(["image"])


def test_towers_that_do_not_belong_together(small):
    from dataclasses import replace

    tokenizer = WordsTokenizer(["a", "b"])
    image = VisionTower(small, position_grid=2)
    with pytest.raises(UserError, match="Image width 16 and text width 32"):
        ImageTextModel(image, TextTower(replace(small, width=32), 4), tokenizer)
    with pytest.raises(UserError, match="4 tokens, the text tower embeds only 3"):
        ImageTextModel(image, TextTower(small, 3), tokenizer)
