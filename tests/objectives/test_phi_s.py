"""PHI-S: a rotation after which all channels vary alike, and one scale; moments it is worked out from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.objectives.moments import Moments
from distill.objectives.phi_s import PhiSNorm, hadamard

PALEY_1, PALEY_2, SYLVESTER = 12, 36, 16
WIDTHS = [1, 2, 4, 8, SYLVESTER, PALEY_1, 20, PALEY_2, 64, 128, 192, 384, 768, 1152]  # many are of encoders


def features(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated channels of very different variances, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) * torch.logspace(-2, 1, width)
    return torch.randn(tokens, width, generator=generator) @ mix + torch.arange(width)


def settled(x: torch.Tensor) -> PhiSNorm:
    norm = PhiSNorm(x.shape[-1])
    norm.accumulate(x)
    norm.settle()
    return norm


@pytest.mark.parametrize("order", WIDTHS)
def test_hadamard_matrices_are_orthogonal_with_entries_of_one_size(order):
    matrix = hadamard(order).double()
    assert matrix.shape == (order, order)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(order).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(matrix.abs(), torch.full((order, order), order**-0.5).double())


@pytest.mark.parametrize("order", [3, 6, 50, 100])
def test_widths_without_a_matrix_are_refused(order):
    with pytest.raises(UserError, match=rf"order {order} is known here. Set objective.feature_norm=standard"):
        PhiSNorm(order)


@settings(max_examples=20, deadline=None)
@given(width=st.sampled_from([2, 4, 12, 20, 36]), tokens=st.integers(80, 200), seed=st.integers(0, 99))
def test_every_channel_has_the_same_variance_and_distances_keep_their_ratios(width, tokens, seed):
    x = features(tokens, width, seed)
    norm = settled(x)
    y = norm(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(width), rtol=0, atol=1e-3)
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(width), rtol=1e-3, atol=0)
    torch.testing.assert_close(norm.rotation @ norm.rotation.T, torch.eye(width), rtol=0, atol=1e-5)
    before, after = torch.pdist(x[:20]), torch.pdist(y[:20])
    torch.testing.assert_close(after / before, norm.scale.expand(len(before)), rtol=1e-3, atol=0)


def test_features_can_be_had_back():
    x = features(200, 12)
    norm = settled(x)
    torch.testing.assert_close(norm(x) / norm.scale @ norm.rotation + norm.mean, x, rtol=1e-4, atol=1e-4)


def test_shapes_gradients_and_state():
    norm = settled(features(100, 4))
    x = features(6, 4).view(2, 3, 4).requires_grad_()
    assert norm(x).shape == (2, 3, 4)
    assert not norm(x).requires_grad
    other = PhiSNorm(4)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other(x), norm(x))


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 49), max_size=4, unique=True))
def test_moments_are_those_of_all_parts_together(cuts):
    x = 1000 + features(50, 3)
    moments = Moments(3)
    for part in torch.tensor_split(x.view(50, 1, 3), sorted(cuts)):
        moments.add(part)
    torch.testing.assert_close(moments.mean(), x.double().mean(0))
    torch.testing.assert_close(moments.covariance(), x.double().T.cov(correction=0), rtol=1e-6, atol=1e-6)
