"""TIPSv2 in the layout of Hugging Face, against transformers' own model as an independent reference."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.errors import UserError
from distill.models.pair import ImageTextModel
from distill.models.sources import describe, open_model

transformers = pytest.importorskip(
    "transformers", reason="needs transformers with TIPSv2: pip install 'everypatch[hf]'"
)
pytest.importorskip("transformers.models.tipsv2", reason="this transformers has no TIPSv2 yet: install 5.20 or newer")

CLOSE = 1e-4
WIDTHS = {"hidden_size": 96, "num_attention_heads": 3}


@pytest.fixture(params=["mlp", "swiglu"])
def saved(request, tmp_path, tokenizer_file):
    """(folder, the model that transformers saved into it): random weights, LayerScale and all."""
    vision = {**WIDTHS, "num_hidden_layers": 2, "image_size": 112, "use_swiglu_ffn": request.param == "swiglu"}
    text = {**WIDTHS, "num_hidden_layers": 2, "intermediate_size": 160, "vocab_size": 40, "max_position_embeddings": 64}
    config = transformers.Tipsv2Config(vision_config=vision, text_config=text, temperature_init_value=0.0049)
    torch.manual_seed(0)
    model = transformers.Tipsv2Model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder, model


@pytest.mark.parametrize("size", [(112, 112), (84, 140)])
@torch.no_grad()
def test_images_and_texts_are_encoded_as_by_transformers(saved, size):
    folder, reference = saved
    opened = open_model(f"hf:{folder}")
    model = opened.model
    assert isinstance(model, ImageTextModel)
    images = torch.rand(2, 3, *size)
    tokens = reference.vision_model(images).last_hidden_state
    cls, patches = model.encode_image(images)
    assert (cls - tokens[:, :2]).abs().max() <= CLOSE
    assert (patches.flatten(1, 2) - tokens[:, 2:]).abs().max() <= CLOSE
    texts = ["a red disc", "a blue square on a wall"]
    ids, valid, _ = model.tokenizer.encode(texts, 64)
    expected = reference.text_model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(valid).long())
    assert (model.encode_text(texts) - expected.pooler_output).abs().max() <= CLOSE
    assert model.temperature.item() == pytest.approx(0.0049, rel=1e-5)
    facts = opened.facts
    assert facts == describe(f"hf:{folder}")
    assert (facts.licence, facts.image_size, facts.position_grid) == ("apache-2.0", 112, (8, 8))
    assert facts.parameters == sum(p.numel() for p in reference.parameters()) - 1 - 4 * 96 - 96  # scales, CLS position


def test_released_names_of_the_mlp_and_a_missing_temperature(saved, tmp_path):
    folder, _ = saved
    weights = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    before = open_model(f"hf:{folder}").model
    released = {
        (name.replace("c_fc", "fc1").replace("c_proj", "fc2") if name.startswith("vision_encoder") else name): value
        for name, value in weights.items()
        if name != "temperature"
    }
    save_file(released, folder / "model.safetensors")
    after = open_model(f"hf:{folder}").model
    images = torch.rand(1, 3, 56, 56)
    assert torch.equal(before.encode_image(images)[1], after.encode_image(images)[1])
    assert after.temperature.item() == pytest.approx(0.0049, rel=1e-5)


def test_the_activation_is_the_configurations(saved):
    folder, _ = saved
    config = folder / "config.json"
    said = json.loads(config.read_text())
    assert open_model(f"hf:{folder}").model.image.gelu == "erf"
    said["vision_config"]["hidden_act"] = "gelu_pytorch_tanh"
    config.write_text(json.dumps(said))
    assert open_model(f"hf:{folder}").model.image.gelu == "tanh"
    said["vision_config"]["hidden_act"] = "silu"
    config.write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"hidden_act silu.*Allowed: hidden_act gelu or gelu_pytorch_tanh"):
        open_model(f"hf:{folder}")


@pytest.mark.parametrize(
    ("size", "side"),
    [(None, 112), ({"height": 56, "width": 56}, 56), ({"shortest_edge": 100}, 98), ({"height": 56, "width": 70}, None)],
)
def test_the_size_of_images_is_the_preprocessors(saved, size, side):
    folder, _ = saved
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": False} | ({"size": size} if size else {}))
    )
    if side is None:
        with pytest.raises(
            UserError, match=r"image size \{'height': 56, 'width': 70\}\. Allowed: height and width the same"
        ):
            open_model(f"hf:{folder}")
    else:
        assert open_model(f"hf:{folder}").model.image_size == describe(f"hf:{folder}").image_size == side


@pytest.mark.parametrize("length", [8, 100, 0, "64"])
def test_the_length_of_texts_is_the_configurations(saved, length):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = length
    (folder / "config.json").write_text(json.dumps(config))
    if length in (0, "64"):
        with pytest.raises(UserError, match=rf"max_position_embeddings {length}\. Allowed: a whole number above 0"):
            open_model(f"hf:{folder}")
        return
    model = open_model(f"hf:{folder}").model
    assert model.text.context == length
    assert model.text.positions.shape == (length, 96)
    assert model.encode_text(["a red disc"]).shape == (1, 96)


def test_a_configuration_that_says_neither_has_those_of_the_released_models(saved):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["max_position_embeddings"], config["vision_config"]["image_size"]
    (folder / "config.json").write_text(json.dumps(config))
    model = open_model(f"hf:{folder}").model
    assert (model.text.context, model.image_size) == (64, 8 * 14)


def test_without_a_tokenizer_texts_are_refused(saved):
    folder, _ = saved
    (folder / "tokenizer.model").unlink()
    assert open_model(f"hf:{folder}").model.encode_text is None
    assert "put tokenizer.model beside the weights" in describe(f"hf:{folder}").line()


def test_a_tokenizer_json_serves_as_well(saved):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    folder, _ = saved
    (folder / "tokenizer.model").unlink()
    vocabulary = {"<pad>": 0, "<unk>": 1, "red": 2, "disc": 3}
    pieces = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    pieces.save(str(folder / "tokenizer.json"))
    model = open_model(f"hf:{folder}").model
    assert model.tokenizer.encode(["Red disc"], 4).ids.tolist() == [[2, 3, 0, 0]]
    again = ImageTextModel.from_spec(json.loads(json.dumps(model.spec())))
    assert again.tokenizer.encode(["a disc"], 3).ids.tolist() == [[1, 3, 0]]


def test_damaged_and_other_folders_are_one_clear_error(saved, tmp_path):
    folder, _ = saved
    file, config = folder / "model.safetensors", folder / "config.json"
    weights, said = {name: value.clone() for name, value in load_file(file).items()}, config.read_text()

    def refused(match: str, where: object = folder) -> None:
        with pytest.raises(UserError, match=match):
            open_model(f"hf:{where}")

    refused(r"No folder at .*absent", tmp_path / "absent")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(r"Cannot read .*truncated, damaged")
    save_file({**weights, "vision_encoder.norm.weight": torch.zeros(5)}, file)
    refused(r"vision_encoder does not fit the shape it seems to be.*norm\.weight is 5, not 96")
    save_file({**weights, "vision_encoder.norm.weight": torch.full((96,), float("nan"))}, file)
    refused(r"NaN or infinite values in vision_encoder\.norm\.weight")
    save_file({"unrelated": torch.zeros(2)}, file)
    refused(r"holds no image tower of TIPSv2: it holds unrelated")
    file.unlink()
    refused(r"has no model\.safetensors: PyTorch pickles are not read")
    config.write_text(said.replace('"model_type": "tipsv2"', '"model_type": "clip"'))
    refused(r"is of a clip model\. Allowed: tipsv2")
    config.write_text("{")
    refused(r"is not a model's configuration")
    config.unlink()
    refused(r"has no config\.json")


def test_a_repository_that_is_not_here_says_where_and_how(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for look in (describe, open_model):
        with pytest.raises(UserError, match=r"looked for google/tipsv2-b14 in the cache .*give a file: hf:/path"):
            look("hf:google/tipsv2-b14")
