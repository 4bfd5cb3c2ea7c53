"""Fitted heads: linear on the centred unit feature, clusters as prototypes, calibrated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from distill.config.schema import Config
from distill.errors import UserError
from distill.models.vision import ImageOutput
from teachers.heads.calibration import mean_entropy
from teachers.heads.fitted import Fit, FittedHead, FittedHeads
from teachers.targets import TargetHeads

WIDTH, IMAGES, PATCHES = 8, 20, 9


@pytest.fixture
def cfg() -> Config:
    config = Config()
    config.heads.prototypes, config.heads.tied = 6, False
    config.teacher.heads.entropy = 0.4
    return config


def stream(batches: int) -> list[ImageOutput]:
    """Clean outputs whose patches lie around 6 directions far from the origin, and CLS around 3 others."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]

    def around(clusters: int, offset: float, *shape: int) -> torch.Tensor:
        of = torch.randint(clusters, shape, generator=generator)
        return 10 * offset + basis[of] + 0.05 * torch.randn(*shape, WIDTH, generator=generator)

    return [ImageOutput(around(3, -1, IMAGES, 2), around(6, 1, IMAGES, PATCHES)) for _ in range(batches)]


def fitted(cfg: Config, outputs: list[ImageOutput]) -> FittedHeads:
    heads = FittedHeads(WIDTH, cfg.heads.prototypes, cfg.heads.tied)
    fit = Fit(heads, cfg, len(outputs))
    for output in outputs:
        fit.add(output)
    fit.finish()
    return heads.requires_grad_(False)


def test_a_head_gives_cosines_of_the_centred_feature():
    head = FittedHead(4, 3)
    x = torch.randn(2, 5, 4)
    with torch.no_grad():
        head.mean.copy_(torch.tensor([1.0, 2, 3, 4]))
        head.prototypes.copy_(torch.eye(4)[:3])
    unit = (x - torch.tensor([1.0, 2, 3, 4])) / (x - torch.tensor([1.0, 2, 3, 4])).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(head.bottleneck(x), unit)
    torch.testing.assert_close(head(x), unit[..., :3])
    assert head.directions().shape == (3, 4)


def test_prototypes_are_the_clusters_and_the_targets_have_the_entropy(cfg):
    outputs = stream(20)
    heads = fitted(cfg, outputs)
    flat = torch.cat([o.patches.flatten(0, 1) for o in outputs])
    torch.testing.assert_close(heads.patch.mean, torch.cat([o.patches for o in outputs[:2]]).mean((0, 1)))
    centres = F.normalize(flat - heads.patch.mean, dim=-1)
    assert heads.patch(flat).amax(-1).mean() > 0.98  # every token has a prototype near it
    assert len(set(heads.patch(flat).argmax(-1).tolist())) == 6
    assert mean_entropy(centres @ heads.patch.directions().T, float(heads.patch.temperature)) == pytest.approx(
        0.4, abs=0.02
    )
    cls = torch.cat([o.cls[:, 0] for o in outputs])
    assert mean_entropy(heads.cls(cls), float(heads.cls.temperature)) == pytest.approx(0.4, abs=0.02)
    assert float(heads.cls.temperature) != float(heads.patch.temperature)


def test_targets_are_a_plain_softmax_at_the_calibrated_temperature(cfg):
    """Whatever balance and temperature the recipe has: a frozen teacher cannot collapse."""
    outputs = stream(10)
    target = TargetHeads(fitted(cfg, outputs), 6)
    output = outputs[0]
    for balance in ("center", "sinkhorn"):
        cfg.objective.patch.balance = cfg.objective.cls.balance = balance
        targets = target.targets(output, cfg.objective, patch_temperature=123.0)
        cls, patch = target.heads.cls, target.heads.patch
        torch.testing.assert_close(targets.cls, (cls(output.cls[:, 0]) / cls.temperature).softmax(-1))
        torch.testing.assert_close(targets.patch.probs(), (patch(output.patches) / patch.temperature).softmax(-1))


def test_tied_heads_have_one_set_of_prototypes_and_each_its_mean(cfg):
    cfg.heads.tied = True
    heads = fitted(cfg, stream(10))
    assert heads.cls.prototypes is heads.patch.prototypes
    assert (heads.cls.mean - heads.patch.mean).abs().min() > 10
    assert sum(p.numel() for p in heads.parameters()) == 6 * WIDTH


def test_only_what_is_needed_is_fitted(cfg):
    cfg.objective.cls.target = "features"
    heads = fitted(cfg, stream(10))
    assert heads.cls.prototypes.abs().sum() == 0
    assert heads.patch.prototypes.abs().sum() > 0


def test_too_few_images_are_said(cfg):
    cfg.heads.prototypes = 50
    with pytest.raises(UserError, match=r"3 batches gave 40 CLS tokens for 50 prototypes. Raise teacher.heads.steps"):
        fitted(cfg, stream(3))
