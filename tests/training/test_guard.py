import math

import numpy as np
import pytest
import torch

from distill.config.schema import GuardConfig
from distill.training.guard import Collapse, Guard, effective_rank, mean_use_entropy


def test_entropy_of_even_and_single_use():
    assert float(mean_use_entropy(torch.full((5, 8), 1 / 8))) == pytest.approx(1.0)
    one = torch.zeros(5, 8)
    one[:, 3] = 1
    assert float(mean_use_entropy(one)) == pytest.approx(0.0, abs=1e-6)
    half = torch.zeros(4, 8)  # two prototypes in equal use
    half[:2, 0] = half[2:, 1] = 1
    assert float(mean_use_entropy(half)) == pytest.approx(math.log(2) / math.log(8))


def test_effective_rank_against_numpy():
    x = np.random.default_rng(0).normal(size=(20, 6))
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = s / s.sum()
    assert float(effective_rank(torch.tensor(x))) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-5)
    assert float(effective_rank(torch.ones(16, 4))) == pytest.approx(1.0, abs=1e-3)
    line = torch.arange(8.0)[:, None] * torch.ones(1, 4)
    assert float(effective_rank(line)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_loss_names_its_term_and_what_to_try(bad):
    parts = {"b/contrastive": torch.tensor(1.0), "b/patch": torch.tensor(bad), "b/patch_masked": torch.tensor(math.nan)}
    guard = Guard(GuardConfig())
    guard.watch(parts, {})
    with pytest.raises(Collapse, match=r"Step 7: b/patch loss is (nan|inf)\. Try: .*objective.patch.teacher_temp"):
        guard.check_finite(7)


def test_a_missing_part_is_not_a_bad_loss_but_a_bad_gradient_is():
    guard = Guard(GuardConfig())
    guard.watch({"b/patch": torch.tensor(1.0), "b/patch_visible": torch.tensor(math.nan)}, {})
    guard.check_finite(3)
    guard.watch({"b/patch": torch.tensor(1.0)}, {"students": torch.tensor(1.0), "teacher": torch.tensor(math.nan)})
    with pytest.raises(Collapse, match="the gradient norm of teacher is nan"):
        guard.check_finite(3)


def test_what_was_bad_between_two_checks_is_seen_at_the_second():
    guard = Guard(GuardConfig())
    for value in (1.0, math.nan, 1.0):
        guard.watch({"b/cls": torch.tensor(value)}, {})
    with pytest.raises(Collapse, match="Step 30: b/cls loss is nan"):
        guard.check_finite(30)
    guard.check_finite(31)  # nothing was watched since


def signs(rank: float, patch_entropy: float = 0.5) -> dict[str, torch.Tensor]:
    return {"rank": torch.tensor(rank), "patch_entropy": torch.tensor(patch_entropy)}


def test_collapse_needs_patience_in_a_row():
    guard = Guard(GuardConfig(patience=3, min_rank=1.5, min_entropy=0.1))
    for rank in (1.0, 1.0, 5.0, 1.0, 1.0):
        guard.check_collapse(signs(rank), 1)
    with pytest.raises(Collapse, match=r"rank is 1, below 1.5 for 3 checks"):
        guard.check_collapse(signs(1.0), 1)
    for _ in range(2):
        guard.check_collapse(signs(5.0, 0.01), 2)
    with pytest.raises(Collapse, match=r"patch_entropy is 0.01, below 0.1"):
        guard.check_collapse(signs(5.0, 0.01), 2)
    guard.check_collapse(signs(math.nan), 3)
    guard.check_collapse(signs(math.nan), 4)
    with pytest.raises(Collapse, match="rank is nan"):
        guard.check_collapse(signs(math.nan), 5)
