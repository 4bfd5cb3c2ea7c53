"""Every format is written, reloaded by its own ecosystem and compared; what fails leaves nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import distill
from distill.errors import UserError
from distill.export import registry, to_timm, to_tips
from distill.export.run import _name
from distill.models.sources import open_model
from distill.models.tokenizers.words import WordsTokenizer

SHAPES = [{}, {"ffn": "swiglu"}, {"gelu": "erf", "eps": 1e-5}]


def test_safetensors_is_the_same_model(saved, tmp_path):
    path = saved()
    done = distill.export(path, "safetensors", tmp_path / "out")
    again, model = distill.load(f"file:{done.folder}/model.safetensors"), distill.load(path)
    assert done.difference == 0
    assert torch.equal(again.encode_text(["a red disc"]), model.encode_text(["a red disc"]))


@pytest.mark.parametrize("shape", [*SHAPES, {"cls": 1}, {"mlp": 99}, {"heads": 2}])
@torch.no_grad()
def test_timm_builds_the_image_tower_from_the_folder(saved, tmp_path, shape):
    path = saved(**shape)
    done = distill.export(path, "timm", tmp_path / "out")
    trunk = timm.create_model(f"local-dir:{done.folder}", pretrained=True).eval()
    cls, patches = distill.load(path).image(images := torch.rand(1, 3, 56, 56))
    assert torch.allclose(trunk.forward_features(images), torch.cat([cls, patches], dim=1), atol=1e-4)
    assert trunk.pretrained_cfg["mean"] == [0, 0, 0] or trunk.pretrained_cfg["mean"] == (0, 0, 0)
    assert "bicubic" in (done.folder / "README.md").read_text()


def test_the_transform_of_timm_is_the_models_own(saved, tmp_path):
    path = saved()
    done = distill.export(path, "timm", tmp_path / "out")
    trunk = timm.create_model(f"local-dir:{done.folder}", pretrained=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(trunk))(picture)
    assert torch.equal(theirs, distill.load(path).preprocess(picture))  # the whole picture, not its middle


@torch.no_grad()
def test_the_size_in_the_card_of_timm_is_the_one_that_it_takes(saved, tmp_path):
    path = saved(size=84)  # positions for 56 px
    card = (distill.export(path, "timm", tmp_path / "out").folder / "README.md").read_text()
    size = int(re.search(r"resized to (\d+) x \1 px", card)[1])
    trunk = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = distill.load(path).preprocess(Image.new("RGB", (50, 40), "red"), size)[None]
    assert trunk.forward_features(images).shape == (1, 2 + 4 * 4, 64)
    assert trunk.pretrained_cfg["input_size"][1:] == [size, size]
    assert "The original is used at 84 px" in card
    card = (distill.export(path, "safetensors", tmp_path / "own").folder / "README.md").read_text()
    assert "resized to 84 x 84 px" in card
    assert "The original is used" not in card


@pytest.mark.parametrize(
    ("shape", "layouts"), [(SHAPES[0], ("jax", "jax")), (SHAPES[2], ("torch", "torch")), (SHAPES[1], ("torch", "jax"))]
)
def test_official_files_open_as_the_same_model(saved, tmp_path, shape, layouts):
    path = saved(**shape)
    done = distill.export(path, "tips", tmp_path / "out")
    assert to_tips.layouts(open_model(path)) == layouts
    again, model = distill.load(to_tips.source_of(done.folder)), distill.load(path)
    assert (again.encode_text(["a red disc"]) - model.encode_text(["a red disc"])).abs().max() <= 1e-5
    assert again.temperature.item() == pytest.approx(0.05)
    assert np.load(done.folder / "text.npz")  # without pickles
    facts = open_model(to_tips.source_of(done.folder)).facts
    assert again.image_size == facts.image_size == model.image_size == 56
    assert facts.licence is None  # the released files' is not that of a model of our own


def test_official_files_come_back_with_a_tokenizer_of_any_kind(saved, tmp_path):
    path = saved(tokenizer=WordsTokenizer(["red", "disc", "a"]))
    done = distill.export(path, "tips", tmp_path / "out")
    code = (done.folder / "README.md").read_text()
    assert 'distill.load("tips:out/vision.npz+out/text.npz+out/tokenizer_state.json")' in code
    again, model = distill.load(to_tips.source_of(done.folder)), distill.load(path)
    assert torch.allclose(again.encode_text(["a red disc"]), model.encode_text(["a red disc"]), atol=1e-5)
    (done.folder / "tokenizer_state.json").write_text("{")
    with pytest.raises(UserError, match=r"Cannot read the tokenizer .*tokenizer_state\.json"):
        distill.load(to_tips.source_of(done.folder))


@pytest.mark.parametrize(
    ("to", "gelu", "kept"), [("tips", "tanh", False), ("tips", "erf", True), ("timm", "erf", False)]
)
def test_the_card_says_where_the_mask_token_is_lost(saved, tmp_path, to, gelu, kept):
    path = saved(gelu=gelu, eps=1e-5 if gelu == "erf" else 1e-6)
    done = distill.export(path, to, tmp_path / "out")
    if to == "tips":
        again = distill.load(to_tips.source_of(done.folder)).image.embed.mask_token
        assert torch.equal(again, distill.load(path).image.embed.mask_token) is kept
        assert bool(again.any()) is kept
    assert ("learned mask token is not in these files" not in (done.folder / "README.md").read_text()) is kept


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("run:runs/lr0.1", "lr0.1"),
        ("runs/lr0.1/#teacher", "lr0.1"),
        ("run:runs/x/checkpoints/step_00000010.pt", "step_00000010"),
        ("tips:a/vision.npz+a/text.npz", "vision"),
        ("file:small.safetensors", "small"),
        ("hf:google/tipsv2-b14", "tipsv2-b14"),
    ],
)
def test_the_default_folder_has_the_name_of_the_model(source, name):
    assert _name(source) == name


def test_what_official_files_cannot_say_is_refused(saved, tmp_path):
    with pytest.raises(UserError, match=r"2 heads of width 64 with the exact GELU.*Allowed: --to timm, onnx"):
        distill.export(saved(heads=2, gelu="erf"), "tips", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_difference_fails_and_leaves_nothing(saved, tmp_path, monkeypatch):
    write = to_timm.official.to_official

    def damaged(tower, layout):
        arrays = write(tower, layout)
        return arrays | {"norm.bias": arrays["norm.bias"] + 0.5}

    monkeypatch.setattr(to_timm.official, "to_official", damaged)
    path = saved()
    with pytest.raises(UserError, match=r"differs from .*(cls|patches) at 56x56 by 0\.\d+, allowed 0\.0001"):
        distill.export(path, "timm", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [path]


def test_bad_words_are_one_clear_error(saved, tmp_path, monkeypatch):
    path = saved()
    with pytest.raises(UserError, match=r"Unknown format 'tim'\. Did you mean 'timm'\? Allowed: hf, onnx"):
        distill.export(path, "tim")
    with pytest.raises(UserError, match="exists already"):
        distill.export(path, "timm", tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        distill.export(path, "timm", tmp_path / "absent" / "out")
    monkeypatch.setattr(registry, "_there", lambda package: False)
    with pytest.raises(
        UserError, match=r"--to onnx needs onnx, onnxruntime, onnxscript: pip install 'everypatch\[onnx"
    ):
        distill.export(path, "onnx")
