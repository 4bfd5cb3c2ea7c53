"""The text tower against a plain forward of one caption at a time without padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.models.text import TextTower


def _norm(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * weight + bias


def reference(tower: TextTower, ids: list[int]) -> torch.Tensor:
    """One caption's embedding `[D]` from the weights alone: no padding, so no mask anywhere."""
    w, width, heads = tower.state_dict(), tower.width, tower.arch.heads
    frequency = [10_000 ** (-i / (width // 2 - 1)) for i in range(width // 2)]
    positions = [[f(p * q) for f in (math.sin, math.cos) for q in frequency] for p in range(len(ids))]
    x = w["embedding.weight"][ids] * math.sqrt(width) + torch.tensor(positions)
    for i in range(tower.layers):
        b = {k.removeprefix(f"blocks.{i}."): v for k, v in w.items() if k.startswith(f"blocks.{i}.")}
        y = _norm(x, b["norm1.weight"], b["norm1.bias"])
        q, k, v = (y @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).split(width, dim=-1)
        size = width // heads
        parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
        mixed = torch.cat([(q[:, p] @ k[:, p].T / math.sqrt(size)).softmax(-1) @ v[:, p] for p in parts], dim=1)
        x = x + mixed @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        y = _norm(x, b["norm2.weight"], b["norm2.bias"])
        hidden = (y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]).clamp(min=0)
        x = x + hidden @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    return _norm(x, w["norm.weight"], w["norm.bias"]).mean(0)


@pytest.fixture(name="tower")
def _tower(small) -> TextTower:
    torch.manual_seed(0)
    tower = TextTower(small, vocabulary=20, context=9).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return tower


def _batch(captions: list[list[int]], length: int, junk: int = 0):
    ids = torch.full((len(captions), length), junk)
    valid = torch.zeros(len(captions), length, dtype=torch.bool)
    for i, caption in enumerate(captions):
        ids[i, : len(caption)] = torch.tensor(caption)
        valid[i, : len(caption)] = True
    return ids, valid


def test_forward_equals_the_definition_and_padding_has_no_influence(tower):
    captions = [[3, 7, 5], [2], [9, 8, 7, 6, 5, 4, 3]]
    expected = torch.stack([reference(tower, caption) for caption in captions])
    with torch.no_grad():
        for length, junk in ((7, 0), (9, 0), (9, 13)):
            ids, valid = _batch(captions, length, junk)
            torch.testing.assert_close(tower(ids, valid), expected, atol=2e-5, rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.integers(1, 19), min_size=1, max_size=9), min_size=1, max_size=4))
def test_each_caption_is_encoded_as_if_alone(captions):
    torch.manual_seed(0)
    tower = _TOWER
    with torch.no_grad():
        together = tower(*_batch(captions, 9))
        alone = torch.cat([tower(*_batch([caption], 9)) for caption in captions])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_slots_in_one_pass_are_the_slots_one_by_one(tower):
    """Captions of two fields, of unlike lengths: forward and gradient, in float64."""
    tower = tower.double()
    short, long = _batch([[3], [2, 4], []], 9), _batch([[3, 7, 5], [2], [9, 8, 7, 6, 5, 4, 3]], 9)
    ids, valid = (torch.stack(pair, dim=1) for pair in zip(short, long))
    packed, single = tower.slots(ids, valid), torch.stack([tower(*short), tower(*long)], dim=1)
    assert packed.shape == (3, 2, tower.width)
    torch.testing.assert_close(packed, single)
    gradients = [torch.autograd.grad((out**2).sum(), list(tower.parameters())) for out in (packed, single)]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


def test_padding_gets_no_gradient(tower):
    ids, valid = _batch([[3, 4], [5, 6, 7]], 9, junk=11)
    tower(ids, valid).square().sum().backward()
    assert tower.embedding.weight.grad[11].abs().max() == 0
    assert tower.embedding.weight.grad[3].abs().max() > 0


def test_word_order_matters(tower):
    with torch.no_grad():
        a, b = tower(*_batch([[3, 4, 5], [5, 4, 3]], 9))
    assert (a - b).norm() > 1e-2


def test_a_row_without_tokens_gives_zeros(tower):
    ids, valid = _batch([[], [3]], 9)
    out = tower(ids, valid)
    assert out[0].abs().max() == 0
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in tower.parameters())


def test_dropout_acts_in_training_only(small):
    tower = TextTower(small, vocabulary=20, context=9, dropout=0.5)
    batch = _batch([[3, 4, 5]], 9)
    assert not torch.equal(tower(*batch), tower(*batch))
    tower.eval()
    assert torch.equal(tower(*batch), tower(*batch))


def test_scales_at_the_start(small):
    torch.manual_seed(0)
    tower = TextTower(small, vocabulary=4000)
    assert tower.embedding.weight.std().item() == pytest.approx(1 / 4, rel=0.05)  # times sqrt(16): unit variance
    assert "positions" not in tower.state_dict()


def test_config_round_trips(small):
    tower = TextTower(small, vocabulary=20, layers=3, context=5, dropout=0.1)
    again = TextTower.from_config(tower.config())
    assert again.config() == tower.config()
    again.load_state_dict(tower.state_dict())


def _module_tower() -> TextTower:
    from distill.models.arch import Arch

    torch.manual_seed(1)
    arch = Arch("small", patch=4, width=8, depth=1, heads=2, mlp=16, ffn="gelu", text_layers=2, text_mlp=16)
    return TextTower(arch, vocabulary=20, context=9).eval()


_TOWER = _module_tower()
