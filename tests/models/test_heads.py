"""The prototype head against numbers computed with plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from distill.config.schema import HeadsConfig
from distill.models.heads import PrototypeHead


def _gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def _matvec(matrix, vector, bias):
    return [sum(m * v for m, v in zip(row, vector)) + b for row, b in zip(matrix, bias)]


def _unit(vector):
    length = math.sqrt(sum(v * v for v in vector))
    return [v / length for v in vector]


def test_golden_values():
    head = PrototypeHead(2, HeadsConfig(prototypes=3, hidden=2, bottleneck=2, layers=3))
    weights = [[[1.0, -0.5], [0.25, 2.0]], [[0.5, 1.0], [-1.0, 0.75]], [[2.0, 0.0], [-0.5, 1.5]]]
    biases = [[0.1, -0.2], [0.0, 0.3], [0.05, 0.4]]
    prototypes = [[3.0, 4.0], [0.0, -2.0], [1.0, 1.0]]
    linears = [m for m in head.mlp if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        for linear, weight, bias in zip(linears, weights, biases, strict=True):
            linear.weight.copy_(torch.tensor(weight))
            linear.bias.copy_(torch.tensor(bias))
        head.prototypes.copy_(torch.tensor(prototypes))
    x = [0.7, -1.2]
    hidden = [_gelu(v) for v in _matvec(weights[0], x, biases[0])]
    hidden = [_gelu(v) for v in _matvec(weights[1], hidden, biases[1])]
    bottleneck = _unit(_matvec(weights[2], hidden, biases[2]))
    cosines = [sum(a * b for a, b in zip(bottleneck, _unit(p))) for p in prototypes]
    assert head.bottleneck(torch.tensor(x)).tolist() == pytest.approx(bottleneck, abs=1e-6)
    assert head.directions()[0].tolist() == pytest.approx([0.6, 0.8])
    assert head(torch.tensor(x)).tolist() == pytest.approx(cosines, abs=1e-6)


def test_shapes_and_unit_lengths():
    head = PrototypeHead(8, HeadsConfig(prototypes=11, hidden=6, bottleneck=5))
    x = torch.randn(2, 3, 8)
    assert head(x).shape == (2, 3, 11)
    torch.testing.assert_close(head.bottleneck(x).norm(dim=-1), torch.ones(2, 3))
    torch.testing.assert_close(head.directions().norm(dim=-1), torch.ones(11))


def test_only_directions_of_prototypes_matter():
    head = PrototypeHead(8, HeadsConfig(prototypes=11, hidden=6, bottleneck=5))
    x = torch.randn(4, 8)
    before = head(x)
    with torch.no_grad():
        head.prototypes.mul_(torch.rand(11, 1) + 0.5)
    torch.testing.assert_close(head(x), before)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_number_of_layers(layers):
    head = PrototypeHead(8, HeadsConfig(prototypes=11, hidden=6, bottleneck=5, layers=layers))
    linears = [m for m in head.mlp if isinstance(m, torch.nn.Linear)]
    assert len(linears) == layers
    assert len(head.mlp) == 2 * layers - 1  # an activation between layers, none at the end
    assert linears[0].in_features == 8
    assert linears[-1].out_features == 5


def test_normalisation_stays_in_full_precision_under_autocast():
    head = PrototypeHead(8, HeadsConfig(prototypes=11, hidden=6, bottleneck=5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bottleneck, directions = head.bottleneck(torch.randn(4, 8)), head.directions()
    assert bottleneck.dtype == directions.dtype == torch.float32
    torch.testing.assert_close(bottleneck.norm(dim=-1), torch.ones(4))


def test_cosines_are_not_rounded_under_autocast():
    head = PrototypeHead(8, HeadsConfig(prototypes=11, hidden=6, bottleneck=5))
    x = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosines, exact = head(x), head.bottleneck(x).double() @ head.directions().double().T
    assert cosines.dtype == torch.float32
    torch.testing.assert_close(cosines.double(), exact, rtol=0, atol=1e-6)  # bfloat16 would be off by 1e-3


def test_size_of_the_shared_head_of_the_papers_saving():
    with torch.device("meta"):
        head = PrototypeHead(768, HeadsConfig())
    assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(14.7, abs=0.05)
