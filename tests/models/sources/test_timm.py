"""Vision transformers of timm: own normalisation, layout and positions, value path, layers, and weights from a file."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import distill
from distill.errors import UserError
from distill.evals.locality import Locality
from distill.evals.zeroshot_seg import ZeroShotSegmentation
from distill.models.sources import describe, open_model
from distill.models.sources import timm as source_module
from distill.models.sources.timm import TimmTower, as_tower
from distill.models.vision import VisionTower

DINOV2 = "vit_small_patch14_dinov2.lvd142m"
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0}


def random(name: str, **changes):
    """A small model of that architecture with random weights (no zero or tiny layers to hide behind)."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tower_of(name: str, **changes) -> tuple[TimmTower, torch.nn.Module]:
    model = random(name, dynamic_img_size=True, **changes)
    return as_tower(model, name).eval(), model


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("vit_small_patch14_reg4_dinov2.lvd142m", "token"),
        ("vit_small_patch16_dinov3.lvd1689m", "token"),  # EVA blocks, rotary positions, averages when asked for a class
        ("vit_base_patch16_siglip_224.v2_webli", "pooled"),
        ("vit_pe_core_base_patch16_224.fb", "pooled"),
        ("vit_pe_core_gigantic_patch14_448.fb", "pooled"),  # no prefix at all
        ("vit_base_patch16_clip_224.openai", "token"),
        ("vit_base_patch16_radio_v3.c_radio", "token"),
    ],
)
@torch.no_grad()
def test_tokens_are_timms_on_normalised_images(name, cls):
    tower, model = tower_of(name)
    images = torch.rand(2, 3, 3 * tower.patch, 2 * tower.patch)
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    features = model.forward_features((images - mean) / std)
    out = tower(images)
    expected = features[:, 0] if cls == "token" else model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(out.cls[:, 0], expected)
    torch.testing.assert_close(out.patches, features[:, model.num_prefix_tokens :])
    assert tower.grid(*images.shape[-2:]) == (3, 2)
    cls_again, final, values = tower.dense(images)
    torch.testing.assert_close(cls_again, out.cls)
    torch.testing.assert_close(final, out.patches)
    assert values.shape == final.shape
    assert not torch.allclose(values, final)
    first, last = tower.layers(images, [0, 1])
    torch.testing.assert_close(last.patches, out.patches)
    torch.testing.assert_close(last.cls, out.cls)
    assert not torch.allclose(first.patches, last.patches)
    with pytest.raises(UserError, match=r"no block 2\. Allowed: 0 to 1"):
        tower.layers(images, [2])


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m"])
@torch.no_grad()
def test_the_value_path_is_the_last_block_when_every_token_attends_to_itself_alone(name, monkeypatch):
    tower, model = tower_of(name, depth=1)
    images = torch.rand(1, 3, 2 * tower.patch, 2 * tower.patch)
    values = tower.dense(images)[2]
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: v)
    alone = model.forward_features(tower.normalised(images))[:, model.num_prefix_tokens :]
    torch.testing.assert_close(values, alone)


@torch.no_grad()
def test_other_sizes_move_the_positions_with_the_picture():
    tower, _ = tower_of(DINOV2)
    assert tower(torch.rand(1, 3, 518, 518)).patches.shape == (1, 37 * 37, 64)
    assert tower(torch.rand(1, 3, 56, 28)).patches.shape == (1, 8, 64)
    with pytest.raises(UserError, match="not a multiple of the patch size 14"):
        tower(torch.rand(1, 3, 57, 28))
    with pytest.raises(UserError, match="no mask token"):
        tower(torch.rand(1, 3, 28, 28), torch.zeros(1, 4, dtype=torch.bool))


@pytest.mark.parametrize("size", ["base", "giant"])
@torch.no_grad()
def test_tipsv2_becomes_a_tower_of_ours_with_its_second_cls(size):
    name = f"vit_{size}_patch14_reg1_tipsv2"
    model = random(name, mlp_ratio=4.0, img_size=56)
    tower = as_tower(model, name).eval()
    assert isinstance(tower, VisionTower)
    images = torch.rand(2, 3, 56, 56)  # the position grid as it is: elsewhere timm resizes it by another method
    expected = model.forward_features(images)
    out = tower(images)
    assert (out.cls - expected[:, :2]).abs().max() < 1e-5
    assert (out.patches - expected[:, 2:]).abs().max() < 1e-5


@pytest.fixture
def dinov2_file(tmp_path, monkeypatch):
    """A checkpoint of a small DINOv2, under a name that timm then builds small."""
    model = random(DINOV2)
    build = timm.create_model
    monkeypatch.setattr(source_module.timm, "create_model", lambda name, **kw: build(name, **{**SMALL, **kw}))
    save_file(model.state_dict(), tmp_path / "dino.safetensors")
    torch.save({"model": model.state_dict()}, tmp_path / "dino.pth")
    return model, tmp_path


@torch.no_grad()
def test_weights_come_from_a_file(dinov2_file):
    model, folder = dinov2_file
    images = torch.rand(1, 3, 28, 28)
    for file in ("dino.safetensors", "dino.pth"):
        source = f"timm:{DINOV2}@{folder / file}"
        opened = open_model(source)
        assert opened.facts == describe(source)
        for name, value in model.state_dict().items():
            assert torch.equal(opened.model.image.trunk.state_dict()[name], value), name
        cls, patches = opened.model.encode_image(images)
        assert (cls.shape, patches.shape) == ((1, 1, 64), (1, 2, 2, 64))
    assert opened.facts.missing is None
    assert opened.facts.licence == "apache-2.0"
    assert distill.load(source).encode_text is None


@pytest.fixture
def clip_file(tmp_path, monkeypatch):
    """(a small CLIP tower that was made with QuickGELU, its file), under a name that timm builds with GELU."""
    model = random("vit_base_patch16_clip_quickgelu_224")
    build = timm.create_model
    monkeypatch.setattr(source_module.timm, "create_model", lambda name, **kw: build(name, **{**SMALL, **kw}))
    save_file(model.state_dict(), tmp_path / "clip.safetensors")
    return model, tmp_path / "clip.safetensors"


@torch.no_grad()
def test_weights_that_were_trained_with_quick_gelu_run_with_it(clip_file):
    reference, file = clip_file
    images = torch.rand(1, 3, 224, 224)
    for name in ("vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_quickgelu_224"):
        opened = open_model(f"timm:{name}@{file}")
        tokens = reference.forward_features(opened.model.image.normalised(images))
        torch.testing.assert_close(opened.model.image(images).patches, tokens[:, 1:])
        assert "QuickGELU" in describe(f"timm:{name}@{file}").line()
    plain = open_model(f"timm:vit_base_patch16_clip_224.laion2b@{file}")
    assert (plain.model.image(images).patches - tokens[:, 1:]).abs().max() > 1e-3
    assert "QuickGELU" not in plain.facts.line()


@pytest.mark.parametrize(
    ("name", "differ", "tag"),
    [
        ("vit_base_patch16_224", "mean and std", "mae"),
        ("vit_large_patch16_dinov3", "mean and std", "sat493m"),
        ("vit_base_patch16_clip_224", r"activation \(GELU or QuickGELU\)", "openai"),
        ("vit_large_patch14_clip_224", r"mean and std and one activation \(GELU or QuickGELU\)", "openai"),
    ],
)
def test_a_file_without_a_tag_is_refused_where_tags_differ_in_what_it_would_mean(name, differ, tag, tmp_path):
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(UserError, match=rf"{name} were not .* one {differ}\. .*timm:{name}\.TAG@FILE, .*\b{tag}\b"):
        describe(f"timm:{name}@{tmp_path / 'weights.safetensors'}")
    assert describe(f"timm:{name}.{tag}@{tmp_path / 'weights.safetensors'}").missing is None


def test_a_file_without_a_tag_is_taken_where_tags_agree(tmp_path):
    (tmp_path / "weights.safetensors").touch()
    facts = describe(f"timm:vit_base_patch16_siglip_224@{tmp_path / 'weights.safetensors'}")
    assert facts.mean == (0.5, 0.5, 0.5)


def test_damaged_and_other_files_are_one_clear_error(dinov2_file):
    model, folder = dinov2_file

    def refused(match: str, file: str) -> None:
        with pytest.raises(UserError, match=match):
            open_model(f"timm:{DINOV2}@{folder / file}")

    state = model.state_dict()
    refused(r"No weights at .*absent", "absent.safetensors")
    for name in ("dino.safetensors", "dino.pth"):
        content = (folder / name).read_bytes()
        (folder / f"short_{name}").write_bytes(content[: len(content) // 2])
        refused(r"Cannot read .*short_dino.*truncated, damaged", f"short_{name}")
    save_file({**state, "norm.weight": state["norm.weight"] * float("nan")}, folder / "nan.safetensors")
    refused(r"NaN or infinite values in norm\.weight", "nan.safetensors")
    save_file({**state, "norm.weight": torch.zeros(3)}, folder / "shape.safetensors")
    refused(r"does not fit vit_small_patch14_dinov2.*norm\.weight", "shape.safetensors")
    save_file({"unrelated": torch.zeros(3)}, folder / "other.safetensors")
    refused(r"does not fit vit_small_patch14_dinov2.*Missing key", "other.safetensors")
    torch.save([1, 2], folder / "list.pth")
    refused(r"is not a file of weights", "list.pth")


def test_code_in_a_checkpoint_is_not_run(dinov2_file):
    _, folder = dinov2_file

    class Trap:
        def __reduce__(self):
            return (open, (str(folder / "ran"), "w"))

    torch.save({"model": Trap()}, folder / "trap.pth")
    with pytest.raises(UserError, match="holds code, which is not run"):
        open_model(f"timm:{DINOV2}@{folder / 'trap.pth'}")
    assert not (folder / "ran").exists()


def test_weights_that_are_not_here_say_where_and_how(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    source = "timm:vit_small_patch16_dinov3.lvd1689m"
    facts = describe(source)
    assert facts.sha256 is None
    assert (facts.cls_tokens, facts.registers, facts.position_grid) == (1, 4, None)
    assert facts.mean == pytest.approx((0.485, 0.456, 0.406))
    expected = rf"looked for timm/vit_small_patch16_dinov3.lvd1689m in the cache .*give a file: {source}@/path"
    assert re.search(expected, facts.missing)
    with pytest.raises(UserError, match=expected):
        open_model(source)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("vit_smal_patch14_dinov2", "has no model 'vit_smal_patch14_dinov2'. Did you mean 'vit_small_patch14_dinov2'"),
        ("vit_small_patch14_dinov2.nope", "unknown tag in .*Allowed: vit_small_patch14_dinov2.lvd142m"),
        ("resnet18.a1_in1k", "no vision transformer with patch tokens"),
        ("vit_tiny_r_s16_p8_224.augreg_in21k", "its patches, by HybridEmbed, are no squares of pixels side by side"),
        ("vit_pwee_patch16_reg1_gap_256.sbb_in1k", "its blocks, ParallelScalingBlock, are not known here"),
        ("test_vit", "knows no weights of test_vit|its weights are not on this machine"),
    ],
)
def test_names_that_cannot_be_opened(name, match, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=match):
        open_model(f"timm:{name}")


@pytest.mark.parametrize("name", ["vit_so400m_patch14_siglip_384", "vit_so400m_patch14_siglip_gap_384"])
def test_a_size_that_is_no_multiple_of_the_patch_becomes_one(name):
    facts = describe(f"timm:{name}.webli")
    assert (facts.patch, facts.image_size, facts.position_grid) == (14, 27 * 14, (27, 27))


def test_what_radio_loses_is_said():
    line = describe("timm:vit_base_patch16_radio_v3.c_radio").line()
    assert "1 CLS + 7 registers" in line
    assert "the first of RADIO's class tokens alone, positions of other sizes from its 32x32, not its 128x128" in line


def test_a_block_without_a_plain_value_path_is_refused():
    tower, _ = tower_of(DINOV2, scale_attn_norm=True)
    words = r"no value path that is known here: use its final tokens \(zeroshot_seg\.paths=final, locality\.paths"
    with pytest.raises(UserError, match=words):
        tower.dense(torch.rand(1, 3, 28, 28))
    for task in (Locality, ZeroShotSegmentation):
        with pytest.raises(UserError, match=words):
            task.check_model(SimpleNamespace(image=tower, encode_text=True), task.Options())
        task.check_model(SimpleNamespace(image=tower, encode_text=True), task.Options(paths="final"))
