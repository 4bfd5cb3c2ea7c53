"""Models of ours by plain path, as a run and as one safetensors file; how sources are written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import distill
from distill.errors import UserError
from distill.models.arch import Arch
from distill.models.loading import save_model
from distill.models.pair import ImageTextModel
from distill.models.sources import describe, open_model
from distill.models.sources.file import save_safetensors
from distill.models.text import TextTower
from distill.models.tokenizers.words import WordsTokenizer
from distill.models.vision import VisionTower

SMALL = Arch("tiny", patch=4, width=16, depth=2, heads=2, mlp=24, ffn="gelu", text_layers=1, text_mlp=32)


@pytest.fixture
def model() -> ImageTextModel:
    torch.manual_seed(0)
    tokenizer = WordsTokenizer(["red", "disc"])
    image = VisionTower(SMALL, position_grid=4, gelu="erf")
    return ImageTextModel(image, TextTower(SMALL, 4, context=6), tokenizer, temperature=0.05).eval()


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(model, path, licence="MIT")
    return path


def test_a_saved_model_opens_bit_for_bit(model, file):
    opened = open_model(f"file:{file}")
    for name, value in model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], value), name
    assert opened.model.spec() == model.spec()
    assert not opened.model.training
    assert opened.facts == describe(f"file:{file}")
    assert opened.facts.licence == "MIT"
    assert opened.checkpoint is None
    assert torch.equal(opened.model.encode_text(["red disc"]), model.encode_text(["red disc"]))


def test_a_plain_path_is_a_run_or_checkpoint_of_ours(model, tmp_path):
    save_model(model, tmp_path / "model.pt")
    facts = describe(tmp_path / "model.pt")
    assert (facts.kind, facts.cls_tokens, facts.patch, facts.position_grid) == ("run", 2, 4, (4, 4))
    assert facts.parameters == sum(p.numel() for p in model.parameters()) - 1  # without the temperature
    assert open_model(str(tmp_path / "model.pt")).checkpoint is not None
    assert distill.load(f"run:{tmp_path / 'model.pt'}").image.gelu == "erf"


def test_a_run_with_values_that_are_not_finite_is_refused(model, tmp_path):
    with torch.no_grad():
        model.image.trunk.norm.weight[0] = float("inf")
    save_model(model, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"NaN or infinite values in image\.trunk\.norm\.weight"):
        open_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("rnu:x", r"Unknown kind of source 'rnu'\. Did you mean 'run'\? Allowed: file, hf, open_clip, run, timm, tips"),
        ("tips:", r"names nothing after the colon\. Write tips:VISION\.npz"),
        ("file:absent.safetensors", r"No file at absent\.safetensors"),
        ("absent", r"No run or checkpoint at absent"),
    ],
)
def test_other_words_are_refused(source, match):
    with pytest.raises(UserError, match=match):
        open_model(source)


def test_damaged_and_other_files_are_one_clear_error(file):
    def refused(match: str) -> None:
        for look in (open_model, describe):
            with pytest.raises(UserError, match=match):
                look(f"file:{file}")

    whole = file.read_bytes()
    weights = {name: value.clone() for name, value in load_file(file).items()}
    header = {"format": "everypatch-model", "spec": json.dumps(open_model(f"file:{file}").model.spec())}
    for share in (0.0, 0.5):
        file.write_bytes(whole[: int(len(whole) * share)])
        refused("Cannot read .*truncated, damaged or no safetensors file")
    save_file(weights, file)
    refused(r"is not a model of ours: it holds .*timm:NAME@")
    save_file(weights, file, metadata={**header, "spec": "{}"})
    refused("The header of .* does not fit this version")
    first = "image.embed.mask_token"
    save_file({**weights, first: torch.zeros(3)}, file, metadata=header)
    refused(rf"does not fit its own header: {first} is 3, not 16")
    save_file({**weights, first: weights[first] * float("nan")}, file, metadata=header)
    with pytest.raises(UserError, match=f"NaN or infinite values in {first}"):
        open_model(f"file:{file}")
