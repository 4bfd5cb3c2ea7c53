"""The block that keeps less against timm's own forward pass: values, gradients, and what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm.models.vision_transformer
import torch
from torch.nn import functional as F

from distill.models.attention import Layout
from distill.models.lean import lean_linear
from distill.models.text import TextTower
from distill.models.vision import VisionTower
from students import parse_arch
from tests.preflight.test_cost import saved_bytes

PLAIN = timm.models.vision_transformer.Block.forward
KINDS = ("gelu", "erf", "swiglu", "relu")


def block_of(kind: str, dropout: float = 0.0):
    torch.manual_seed(0)
    arch = parse_arch("tiny/8")
    if kind == "relu":
        return TextTower(arch, 2, 1, 4, dropout).blocks[0]
    gelu = "erf" if kind == "erf" else "tanh"
    arch = replace(arch, ffn="swiglu") if kind == "swiglu" else arch
    return VisionTower(arch, depth=1, gelu=gelu).trunk.blocks[0]


def both_ways(block, precision: str):
    """Outputs and gradients of two packed groups, ours first."""
    width = block.norm1.weight.numel()
    x = torch.randn(1, 2 * 5 + 3 * 4, width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    layout = Layout.of([torch.empty(2, 5, width), torch.empty(3, 4, width)])
    found = []
    for forward in (type(block).forward, PLAIN):
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = forward(block, x, attn_mask=layout)
        found.append((out, torch.autograd.grad(out.square().sum(), [x, *block.parameters()])))
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "dropout"), [*((kind, 0.0) for kind in KINDS), ("relu", 0.2)])
def test_it_is_timms_block_bit_by_bit(kind, dropout, precision):
    (ours, mine), (theirs, expected) = both_ways(block_of(kind, dropout), precision)
    assert torch.equal(ours, theirs)
    for a, b in zip(mine, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_keeps_much_less(precision):
    block, x = block_of("gelu"), torch.randn(4, 20, 128, requires_grad=True)
    kept = []
    for forward in (type(block).forward, PLAIN):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            kept.append(saved_bytes(lambda way=forward: way(block, x), list(block.parameters())))
    assert kept[0] < 0.65 * kept[1]


def test_only_what_is_trained_gets_gradients():
    block, x = block_of("gelu"), torch.randn(1, 4, 128)
    block.requires_grad_(False)
    assert not block(x).requires_grad
    block.mlp.fc2.weight.requires_grad_(True)
    block(x).sum().backward()
    assert [name for name, p in block.named_parameters() if p.grad is not None] == ["mlp.fc2.weight"]


def test_a_pass_without_gradients_leaves_none_of_its_casts_behind():
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        lean = lean_linear(layer, F.relu, x)
        plain = layer(F.relu(x))
    assert torch.equal(lean, plain)
    plain.float().sum().backward()
    assert layer.weight.grad is not None
