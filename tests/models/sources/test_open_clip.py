"""Pairs of open_clip: image towers of both kinds, texts, and weights from a file."""

from __future__ import annotations

import copy
import json

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from distill.config.load import load_config
from distill.config.schema import Config
from distill.errors import UserError
from distill.models.sources import describe, open_model
from distill.models.sources import open_clip as source_module
from distill.preflight import cache, probe
from distill.preflight.sketch import sketch_models

CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TIMM = {
    "embed_dim": 24,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "text_cfg": {**CLIP["text_cfg"], "context_length": 12},
}


@pytest.fixture(params=["clip", "timm"])
def pair(request, tmp_path):
    """(name, the pair itself, its weights in a file): small models registered with open_clip."""
    name = f"small-{request.param}"
    (tmp_path / f"{name}.json").write_text(json.dumps({"clip": CLIP, "timm": TIMM}[request.param]))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(name, load_weights=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    file = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return name, model, file


@torch.no_grad()
def test_images_and_texts_are_encoded_as_by_open_clip(pair):
    name, reference, file = pair
    source = f"open_clip:{name}@{file}"
    opened = open_model(source)
    model, facts = opened.model, opened.facts
    assert facts == describe(source)
    assert facts.parameters == sum(p.numel() for p in reference.parameters())
    assert facts.missing is None
    size = facts.image_size
    images = torch.rand(2, 3, size, size)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (reference.visual.image_mean, reference.visual.image_std))
    assert facts.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    cls, patches = model.encode_image(images)
    torch.testing.assert_close(cls[:, 0], reference.encode_image((images - mean) / std))
    side = size // facts.patch
    assert patches.shape == (2, side, side, cls.shape[-1])
    texts = ["a red disc", "a blue square"]
    tokens = open_clip.get_tokenizer(name)(texts, context_length=reference.context_length)
    torch.testing.assert_close(model.encode_text(texts), reference.encode_text(tokens))
    assert model.temperature.item() == pytest.approx(1 / reference.logit_scale.exp().item(), rel=1e-5)
    assert model.encode_text(texts).shape[-1] == cls.shape[-1]


def test_the_facts_tell_the_width_of_the_trunk_from_that_of_its_features(pair):
    name, _, file = pair
    facts = describe(f"open_clip:{name}@{file}")
    assert facts.arch.width == 64
    assert facts.features == open_model(f"open_clip:{name}@{file}").model.image.width == (24 if "timm" in name else 32)
    block = probe._block(facts.arch, False, Config())  # what `distill plan gpu=cpu` runs of a teacher
    x = torch.rand(1, 5, 64)
    assert block(x).shape == x.shape


def test_what_is_kept_and_regressed_of_a_teacher_has_the_width_of_its_features(pair):
    name, _, file = pair
    source = f"open_clip:{name}@{file}"
    config = load_config("distill/scenes_tiny_student", {"teacher.source": source, "data.scenes.count": 8}).config
    heads, width = sketch_models(config).learners[0].heads, describe(source).features
    assert (heads.features.out_features, heads.cls_features.out_features) == (width, width)
    assert cache._widths(config, source) == (width, width)


@torch.no_grad()
def test_value_path_layers_and_other_sizes(pair):
    name, _, file = pair
    tower = open_model(f"open_clip:{name}@{file}").model.image
    images = torch.rand(1, 3, 6 * tower.patch, 4 * tower.patch)  # not the size it was made for
    cls, patches = tower(images)
    again, final, values = tower.dense(images)
    torch.testing.assert_close((again, final), (cls, patches))
    assert values.shape == final.shape == (1, 24, tower.width)
    assert not torch.allclose(values, final)
    torch.testing.assert_close(tower.layers(images, [tower.depth - 1])[0].patches, patches)


@torch.no_grad()
def test_the_value_path_is_the_last_block_when_every_token_attends_to_itself_alone(pair, monkeypatch):
    name, _, file = pair
    tower = open_model(f"open_clip:{name}@{file}").model.image
    x = torch.rand(1, 3, 4 * tower.patch, 4 * tower.patch)
    values = tower.dense(x)[2]
    if name == "small-clip":
        last = tower.visual.transformer.resblocks[-1]
        w = last.attn

        def alone(q_x, **_):
            width = q_x.shape[-1]
            value = q_x @ w.in_proj_weight[2 * width :].T + w.in_proj_bias[2 * width :]
            return value @ w.out_proj.weight.T + w.out_proj.bias

        monkeypatch.setattr(last, "attention", alone)
    else:
        attention = tower.trunk.blocks[-1].attn
        monkeypatch.setattr(attention, "forward", lambda y, **_: attention.proj(attention.qkv(y).chunk(3, -1)[2]))
    torch.testing.assert_close(values, tower(x).patches)


def test_positions_follow_the_size_as_open_clip_resizes_them(pair):
    name, reference, file = pair
    if name != "small-clip":
        pytest.skip("timm resizes its own")
    tower = open_model(f"open_clip:{name}@{file}").model.image
    bigger = open_clip.create_model(name, pretrained=str(file), force_image_size=48).eval()
    images = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(tower(images).cls[:, 0], bigger.encode_image(tower.normalised(images)))
    assert F.cosine_similarity(tower(images).cls[:, 0], reference.encode_image(images[..., :32, :32])).item() < 0.9999


def test_bad_names_and_files(pair, tmp_path):
    name, model, file = pair

    def refused(match: str, source: str) -> None:
        with pytest.raises(UserError, match=match):
            open_model(f"open_clip:{source}")

    refused(r"no model 'ViT-B-61'\. Did you mean 'ViT-B-16'", "ViT-B-61/openai")
    refused(r"unknown weights 'opnai'\. Allowed: ViT-B-16/openai", "ViT-B-16/opnai")
    refused(r"not all trained with one mean and std.*open_clip:ViT-L-14/TAG@FILE", f"ViT-L-14@{file}")
    refused(r"not all trained with one activation \(GELU or QuickGELU\).*TAG one of openai,", f"ViT-B-16@{file}")
    refused(r"No weights at .*absent", f"{name}@{tmp_path / 'absent.pt'}")
    content = file.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[: len(content) // 2])
    refused(r"truncated, damaged", f"{name}@{tmp_path / 'short.safetensors'}")
    save_file({"logit_scale": model.logit_scale.detach() * float("nan")}, tmp_path / "nan.safetensors")
    refused(r"NaN or infinite values in logit_scale", f"{name}@{tmp_path / 'nan.safetensors'}")
    save_file({"unrelated": torch.zeros(2)}, tmp_path / "other.safetensors")
    refused(rf"does not fit {name}: .*", f"{name}@{tmp_path / 'other.safetensors'}")


def test_weights_that_are_not_here_say_where_and_how():
    facts = describe("open_clip:ViT-SO400M-16-SigLIP2-384/webli")
    assert facts.sha256 is None
    assert (facts.patch, facts.position_grid, facts.image_size, facts.arch.width) == (16, (24, 24), 384, 1152)
    assert facts.mean == pytest.approx((0.5, 0.5, 0.5))
    assert "timm/ViT-SO400M-16-SigLIP2-384" in facts.missing
    assert "give a file: open_clip:ViT-SO400M-16-SigLIP2-384/webli@" in facts.missing


@pytest.mark.parametrize(
    ("source", "tower"),
    [
        ("RN50/openai", "image tower ModifiedResNet has no patch tokens"),
        ("convnext_base/laion400m_s13b_b51k", "image tower ConvNeXt has no patch tokens"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "image tower VisionTransformer has no patch tokens"),
        ("MobileCLIP-B/datacompdr", "its patches, by HybridEmbed, are no squares of pixels"),
    ],
)
def test_towers_without_patch_tokens_that_are_known_are_refused(source, tower):
    for look in (describe, open_model):
        with pytest.raises(UserError, match=rf"^open_clip:{source}: .*{tower}"):
            look(f"open_clip:{source}")


def test_a_size_that_is_no_multiple_of_the_patch_becomes_one():
    facts = describe("open_clip:ViT-SO400M-14-SigLIP-384/webli")
    assert (facts.patch, facts.image_size) == (14, 27 * 14)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_class_token_is_a_register_only_where_patches_are_pooled(tmp_path, pool):
    name = f"small-{pool}"
    config = {**TIMM, "vision_cfg": {**TIMM["vision_cfg"], "timm_pool": pool}}
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    (tmp_path / "weights.safetensors").touch()
    facts = describe(f"open_clip:{name}@{tmp_path / 'weights.safetensors'}")
    assert (facts.cls_tokens, facts.registers) == (1, 0 if pool == "token" else 1)


@pytest.fixture
def foreign(tmp_path):
    """The name of a pair whose text tower is one of Hugging Face."""
    text = {"hf_model_name": "someone/roberta", "hf_tokenizer_name": "someone/roberta", "hf_pooler_type": "mean_pooler"}
    (tmp_path / "small-foreign.json").write_text(json.dumps({**CLIP, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "small-foreign.json")
    return "small-foreign"


def test_a_text_tower_of_hugging_face_that_is_not_here_is_named(foreign, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no connection")

    file = tmp_path / "weights.safetensors"
    save_file({"logit_scale": torch.zeros(())}, file)
    monkeypatch.setattr(open_clip, "create_model", offline)
    for look in (describe, open_model):
        with pytest.raises(UserError, match=r"text tower is someone/roberta .*hf download .*ended with: no connection"):
            look(f"open_clip:{foreign}@{file}")


def test_texts_of_a_tower_of_hugging_face_have_the_length_that_open_clip_pads_to(foreign, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'everypatch[hf]'")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.RobertaConfig(vocab_size=50, max_position_embeddings=514, **sizes)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: config)
    pair = open_clip.create_model(foreign, load_weights=False, pretrained_text=False)
    file = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in pair.state_dict().items()}, file)
    monkeypatch.setattr(source_module, "_tokenizer", lambda name: None)
    opened = open_model(f"open_clip:{foreign}@{file}")
    assert opened.model.text.context == 77
    assert "50 tokens, 77 a text" in opened.facts.line()


@pytest.fixture
def tagged(tmp_path, monkeypatch):
    """(a pair that was made with QuickGELU, its file): open_clip knows its weights as quick/said, by a name without."""
    for name, more in (("quick", {}), ("quick-explicitly", {"quick_gelu": True})):
        (tmp_path / f"{name}.json").write_text(json.dumps({**CLIP, **more}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    monkeypatch.setitem(pretrained._PRETRAINED, "quick", {"said": {"quick_gelu": True, "url": "x"}, "other": {}})
    torch.manual_seed(0)
    model = open_clip.create_model("quick-explicitly", load_weights=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    file = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    monkeypatch.setattr(factory, "download_pretrained", lambda cfg, **_: str(file))
    return model, file


@torch.no_grad()
def test_weights_that_were_trained_with_quick_gelu_run_with_it(tagged, recwarn):
    reference, file = tagged
    images, texts = torch.rand(2, 3, 32, 32), ["a red disc", "a blue square"]
    tokens = open_clip.get_tokenizer("quick")(texts, context_length=reference.context_length)
    for source in (f"open_clip:quick/said@{file}", "open_clip:quick/said", f"open_clip:quick-explicitly@{file}"):
        opened = open_model(source)
        expected = reference.encode_image(opened.model.image.normalised(images))
        torch.testing.assert_close(opened.model.encode_image(images)[0][:, 0], expected)
        torch.testing.assert_close(opened.model.encode_text(texts), reference.encode_text(tokens))
        tower = source_module.ClipTower(reference.visual, opened.facts.mean, opened.facts.std)
        torch.testing.assert_close(opened.model.image.dense(images), tower.dense(images))  # the value path too
        assert "QuickGELU" in describe(source).line()
    plain = open_model(f"open_clip:quick/other@{file}")
    assert (plain.model.encode_image(images)[0][:, 0] - expected).abs().max() > 1e-3
    assert (plain.model.encode_text(texts) - reference.encode_text(tokens)).abs().max() > 1e-3
    assert "QuickGELU" not in plain.facts.line()
    with pytest.raises(
        UserError, match=r"not all trained with one activation.*open_clip:quick/TAG@FILE, TAG one of said"
    ):
        open_model(f"open_clip:quick@{file}")
    assert not [warning for warning in recwarn if "QuickGELU mismatch" in str(warning.message)]


def test_every_pair_has_the_activation_that_its_tag_or_name_says(monkeypatch):
    shallow = copy.deepcopy(factory._MODEL_CONFIGS)
    for config in shallow.values():
        if isinstance(config["vision_cfg"].get("layers"), int):
            config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 1
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", shallow)
    built: dict[tuple[str, bool], set[type]] = {}
    for name, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(name)
        said = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu") or config.get("quick_gelu"))
        if "timm_model_name" in config["vision_cfg"]:
            assert not said, f"{name}/{tag}: a tower of timm has the activation of its own name"
        expected = said and (name, tag) != ("ViT-B-16", "dfn2b")
        assert source_module._trained(name, tag).quick_gelu == expected, f"{name}/{tag}"
        own = isinstance(config["vision_cfg"].get("layers"), int) and "hf_model_name" not in config["text_cfg"]
        if own and (name, expected) not in built:
            modules = source_module._shape(f"open_clip:{name}/{tag}", name, tag).modules()
            built[name, expected] = {type(module) for module in modules if isinstance(module, QuickGELU | nn.GELU)}
    assert all(found == {QuickGELU if quick else nn.GELU} for (_, quick), found in built.items()), built
    assert sum(quick for _, quick in built) > 12
