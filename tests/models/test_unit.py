"""Unit vectors with a gradient of their own, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from distill.models.unit import SHORTEST, unit


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_are_those_of_normalize(dtype, tolerance):
    x = torch.randn(4, 6, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x[0, 0], x[0, 1] = 0, x[0, 1] * SHORTEST / 100  # none, and too short to be scaled to length 1
    grad = torch.randn(x.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    ours, theirs = unit(x), F.normalize(x, dim=-1)
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, x, grad)[0], torch.autograd.grad(theirs, x, grad)[0], rtol=tolerance, atol=tolerance
    )


def test_gradients_are_those_of_finite_differences():
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(unit, (x,))


def test_compiled_it_is_the_same():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    compiled = torch.compile(unit, backend="aot_eager", fullgraph=True)
    ours, theirs = (torch.autograd.grad(f(x).square().sum(dim=0)[0], x)[0] for f in (compiled, unit))
    torch.testing.assert_close(ours, theirs)
