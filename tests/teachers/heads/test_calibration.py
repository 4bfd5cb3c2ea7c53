"""The temperature that gives targets of an asked entropy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from teachers.heads.calibration import mean_entropy, temperature_for


def cosines(tokens: int = 200, prototypes: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, w = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (tokens, prototypes))
    return x @ w.T


def test_entropy_is_a_share_of_that_of_even_use():
    z = cosines(3, 5).double()
    expected = 0.0
    for row in z.tolist():
        e = [math.exp(v / 0.3) for v in row]
        expected -= sum(v / sum(e) * math.log(v / sum(e)) for v in e) / 3
    assert mean_entropy(z, 0.3) == pytest.approx(expected / math.log(5), rel=1e-5)
    assert mean_entropy(torch.zeros(3, 5), 0.3) == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(entropy=st.floats(0.02, 0.98), seed=st.integers(0, 99))
def test_the_temperature_hits_the_entropy(entropy, seed):
    z = cosines(seed=seed)
    assert mean_entropy(z, temperature_for(z, entropy)) == pytest.approx(entropy, abs=1e-3)


def test_more_entropy_needs_more_heat():
    found = [temperature_for(cosines(), entropy) for entropy in (0.1, 0.3, 0.6, 0.9)]
    assert found == sorted(found)
    assert found[0] < found[-1] / 3
