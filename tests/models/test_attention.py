"""Our attention against timm's and against PyTorch's fused kernel, forward and gradient; groups and single calls."""

from __future__ import annotations

import pytest
import timm.layers
import torch

from distill.models import attention
from distill.models.attention import Attention, Layout, attend, attend_fused, attend_plain


def _qkv(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("masked", [False, True])
def test_matrix_products_give_what_the_fused_kernel_gives(masked):
    qkv = _qkv(3, 7, 3, 2, 4)  # [B, N, 3, H, d]
    mask = torch.rand(3, 1, 1, 7, generator=torch.Generator().manual_seed(2)) < 0.6 if masked else None
    if mask is not None:
        mask[..., 0] = True
    plain, fused = attend_plain(qkv, mask), attend_fused(qkv, mask)
    assert plain.shape == (3, 7, 8)
    torch.testing.assert_close(plain, fused)
    weight = torch.randn_like(plain)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), qkv)[0] for out in (plain, fused))
    torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_finite_differences():
    mask = torch.tensor([True, True, False]).view(1, 1, 1, 3)
    assert torch.autograd.gradcheck(lambda qkv: attend_plain(qkv, mask), _qkv(2, 3, 3, 1, 2))


def test_the_kernel_is_chosen_by_precision_length_and_dropout(monkeypatch):
    used = []
    monkeypatch.setattr(attention, "attend_plain", lambda *_: used.append("plain"))
    monkeypatch.setattr(attention, "attend_fused", lambda *_: used.append("fused"))
    for tokens, dtype, dropout in (
        (512, "bfloat16", 0.0),
        (513, "bfloat16", 0.0),
        (4, "bfloat16", 0.1),
        (4, "float32", 0),
    ):
        attend(torch.empty(1, tokens, 3, 1, 1, dtype=getattr(torch, dtype)), None, dropout)
    attend(torch.empty(1, 4, 3, 1, 1, device="meta", dtype=torch.bfloat16))  # stands for any device that is no CPU
    assert used == ["plain", "fused", "fused", "fused", "fused"]


@pytest.fixture
def pair():
    """Ours and timm's attention of the same weights, fp64, width 8."""
    torch.manual_seed(0)
    theirs = timm.layers.Attention(8, num_heads=2, qkv_bias=True).double()
    ours = Attention(8, num_heads=2, qkv_bias=True).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_it_is_timms_attention(pair):
    ours, theirs = pair
    x = _qkv(2, 5, 8)
    keys = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None, :]
    for mask in (None, keys):
        torch.testing.assert_close(ours(x, attn_mask=mask), theirs(x, attn_mask=mask))


def test_groups_in_one_pass_are_the_groups_one_by_one(pair):
    ours, theirs = pair
    parts = [_qkv(2, 5, 8), _qkv(3, 2, 8), _qkv(1, 4, 8)]
    masks = [None, torch.tensor([True, False]).view(1, 1, 1, 2), None]
    layout = Layout.of(parts, masks)
    assert layout.groups == ((2, 5), (3, 2), (1, 4))
    packed = layout.cut(ours(layout.join(parts)[None], attn_mask=layout)[0])
    single = [theirs(part, attn_mask=mask) for part, mask in zip(parts, masks)]
    for a, b in zip(packed, single):
        torch.testing.assert_close(a, b)
    gradients = [
        torch.autograd.grad(sum((out**2).sum() for out in outs), [*parts, *module.parameters()])
        for outs, module in ((packed, ours), (single, theirs))
    ]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)
