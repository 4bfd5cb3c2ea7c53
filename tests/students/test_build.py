from __future__ import annotations

import pytest
import torch

import students
from distill.config.schema import CaptionsConfig, Config, StudentConfig, TextConfig, VisionConfig
from distill.models.tokenizers.words import WordsTokenizer


class Counted(WordsTokenizer):
    """A tokenizer of the paper's vocabulary."""

    @property
    def vocabulary(self) -> int:
        return 32_000


def _millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("arch", "image", "text"),
    [
        ("B/14", 86.3, 109.6),
        ("L/14", 304.0, 183.9),
        ("So400m/14", 413.3, 448.3),
        ("g/14", 1135.8, 389.1),
        ("S/14", 21.9, 33.6),
    ],
)
def test_parameter_counts_are_the_papers(arch, image, text):
    model = students.build_model(StudentConfig(arch=arch), Config(), Counted([]), device="meta")
    assert round(_millions(model.image), 1) == image
    assert round(_millions(model.text), 1) == text
    assert all(p.is_meta for p in model.parameters())


def test_the_paper_counts_of_the_smaller_position_grid():
    cfg = Config(vision=VisionConfig(position_grid=16))
    counts = {
        arch: round(_millions(students.build_model(StudentConfig(arch=arch), cfg, Counted([]), "meta").image), 1)
        for arch in ("S/14", "B/14", "L/14", "So400m/14")
    }
    assert counts == {"S/14": 21.6, "B/14": 85.7, "L/14": 303.2, "So400m/14": 412.4}


def test_tiny_is_about_a_million():
    cfg = Config(vision=VisionConfig(position_grid=8), text=TextConfig(layers=None))
    model = students.build_model(StudentConfig(arch="tiny/8"), cfg, WordsTokenizer(["a"]))
    assert 1.1 < _millions(model.image) < 1.3
    assert model.text.layers == 3


def test_every_recipe_key_reaches_the_model(cfg):
    cfg.captions = CaptionsConfig(cls2=[])
    cfg.vision = VisionConfig(position_grid=5, gelu="erf", drop_path=0.2)
    cfg.text = TextConfig(layers=2, context=7, dropout=0.3)
    cfg.objective.contrastive.temperature = 0.01
    cfg.views.global_size = 48
    model = students.build_model(StudentConfig(arch="tiny/16", depth=3), cfg, WordsTokenizer(["a", "b"]))
    assert model.image.cls_tokens == 1
    assert model.image.position_grid == 5
    assert isinstance(model.image.trunk.blocks[0].mlp.act, torch.nn.GELU)
    assert model.image.trunk.blocks[0].mlp.act.approximate == "none"
    assert model.image.trunk.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert model.image.depth == 3
    assert (model.text.layers, model.text.context, model.text.dropout) == (2, 7, 0.3)
    assert model.text.vocabulary == 4
    assert model.temperature.item() == pytest.approx(0.01)
    assert model.image_size == 48


def test_weights_follow_the_seed(build):
    a, b, c = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(a.image.embed.proj.weight, b.image.embed.proj.weight)
    assert not torch.equal(a.image.embed.proj.weight, c.image.embed.proj.weight)


def test_kernels_of_the_blocks_start_as_asked():
    """Largest weights: sqrt(6 / (in + out)) for Xavier, 1 / sqrt(in) for fan_in."""
    found = {}
    for kernels in ("xavier", "fan_in"):
        cfg = Config(vision=VisionConfig(kernels=kernels, position_grid=4))
        torch.manual_seed(0)
        model = students.build_model(StudentConfig(arch="tiny/8", depth=1), cfg, WordsTokenizer.train(["a ball"], 20))
        found[kernels] = float(model.image.trunk.blocks[0].mlp.fc1.weight.detach().abs().max())
    assert found["xavier"] == pytest.approx((6 / (128 + 512)) ** 0.5, rel=0.02)
    assert found["fan_in"] == pytest.approx(128**-0.5, rel=0.02)
