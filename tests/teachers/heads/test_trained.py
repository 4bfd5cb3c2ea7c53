"""Heads trained on a frozen trunk: they learn, their average teaches, the features are left alone."""

from __future__ import annotations

import copy

import pytest
import torch

from distill.config.schema import Config
from distill.models.joint_heads import Heads
from distill.models.vision import ImageOutput
from teachers.heads.trained import HeadTraining, prototypes_alone
from teachers.targets import TargetHeads


@pytest.fixture
def cfg() -> Config:
    config = Config()
    config.heads.prototypes, config.heads.hidden, config.heads.bottleneck = 8, 16, 4
    return config


def outputs(count: int) -> list[ImageOutput]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(6, 7, 5, generator=generator) for _ in range(count)]
    return [ImageOutput(x[:, :2], x[:, 2:]) for x in made]


@pytest.mark.parametrize("balance", ["center", "sinkhorn"])
@pytest.mark.parametrize("tied", [True, False])
def test_heads_learn_to_say_the_same_as_their_average(cfg, balance, tied):
    cfg.objective.patch.balance = cfg.objective.cls.balance = balance
    cfg.heads.tied = tied
    torch.manual_seed(0)
    heads = TargetHeads(Heads(5, cfg.heads), 8)
    before = copy.deepcopy(heads.state_dict())
    training = HeadTraining(heads, cfg)
    losses = []
    batch = outputs(1)[0]
    for _ in range(60):
        training.add(batch)
        losses.append(float(training.loss.detach()))
    training.finish()
    assert losses[-1] < 0.75 * max(losses)  # from an even start a centre first has to spread the targets
    moved = {name.split(".")[0] for name, value in heads.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"heads", "cls_center", "patch_center"}
    for mine, theirs in zip(heads.heads.parameters(), training.learner.parameters()):
        assert not torch.equal(mine, theirs)  # an average lags behind
        assert mine.grad is None


def test_a_batch_in_parts_is_one_step(cfg):
    torch.manual_seed(0)
    whole = TargetHeads(Heads(5, cfg.heads), 8)
    parts, in_parts = copy.deepcopy(whole), copy.deepcopy(cfg)
    in_parts.train.accumulate = 2
    once, twice = HeadTraining(whole, cfg), HeadTraining(parts, in_parts)
    for output in outputs(4):
        once.add(output)
        for half in (slice(0, 3), slice(3, 6)):
            twice.add(ImageOutput(output.cls[half], output.patches[half]))
    there = parts.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.allclose(there[name], value, atol=5e-5), name


def test_losses_that_regress_features_take_no_part(cfg):
    cfg.objective.patch.target = "features"
    alone = prototypes_alone(cfg.objective)
    assert (alone.patch.weight, alone.cls.weight) == (0, 1)
    cfg.heads.tied = False
    heads = TargetHeads(Heads(5, cfg.heads), 8)
    before = copy.deepcopy(heads.heads.patch.state_dict())
    training = HeadTraining(heads, cfg)
    for output in outputs(3):
        training.add(output)
    assert all(torch.equal(value, before[name]) for name, value in heads.heads.patch.state_dict().items())
