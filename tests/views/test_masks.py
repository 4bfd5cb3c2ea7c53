"""Masks: the exact count, whatever the kind; blocks are clumped, random masks are not."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.views.masks import KINDS, draw_mask, masked_count

steady = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

GRIDS = st.tuples(st.integers(1, 20), st.integers(1, 20))
RATIOS = st.floats(0, 1, exclude_max=True)


@steady
@given(grid=GRIDS, ratio=RATIOS, kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
def test_exactly_the_count_is_masked_and_something_stays_visible(grid, ratio, kind, seed):
    mask = draw_mask(grid, ratio, kind, np.random.default_rng(seed))
    patches = grid[0] * grid[1]
    assert mask.shape == (patches,)
    assert mask.dtype == bool
    assert mask.sum() == masked_count(patches, ratio)
    assert not mask.all()
    assert mask.any() == (ratio > 0 and patches > 1)


@steady
@given(patches=st.integers(1, 2000), ratio=RATIOS)
def test_the_count_is_the_nearest_possible_one(patches, ratio):
    count = masked_count(patches, ratio)
    allowed = range(1, patches) if ratio > 0 and patches > 1 else range(1)
    assert count in allowed
    assert abs(count - ratio * patches) <= min(abs(c - ratio * patches) for c in allowed) + 1e-9


def test_counts_round_half_up_and_are_the_papers():
    assert masked_count(256, 0.75) == 192
    assert masked_count(10, 0.25) == 3
    assert masked_count(6, 0.25) == 2
    assert masked_count(64, 0.999) == 63
    assert masked_count(64, 0.001) == 1


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_outside_the_range_is_refused(ratio):
    with pytest.raises(UserError, match=r"mask.ratio is .* Allowed: at least 0 and below 1"):
        draw_mask((4, 4), ratio, "random", np.random.default_rng(0))


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'block'"):
        draw_mask((4, 4), 0.5, "blocks", np.random.default_rng(0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_patch_is_masked_about_equally_often_by_random_and_somewhere_by_block(kind):
    rng = np.random.default_rng(0)
    share = np.mean([draw_mask((6, 6), 0.5, kind, rng) for _ in range(2000)], axis=0)
    assert share.mean() == pytest.approx(0.5)
    spread = 0.05 if kind == "random" else 0.35  # blocks favour the middle
    assert np.abs(share - 0.5).max() < spread


def test_blocks_are_clumped():
    """Neighbours agree more often in block masks than in random ones."""

    def agreement(kind: str) -> float:
        rng = np.random.default_rng(1)
        masks = np.stack([draw_mask((14, 14), 0.5, kind, rng).reshape(14, 14) for _ in range(100)])
        return float((masks[:, :, 1:] == masks[:, :, :-1]).mean())

    assert agreement("random") == pytest.approx(0.5, abs=0.03)
    assert agreement("block") > 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_masks_depend_on_the_generator_alone(kind):
    masks = [draw_mask((8, 8), 0.75, kind, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()
