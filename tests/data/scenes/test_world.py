from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distill.data.scenes import THINGS, World
from distill.data.scenes.baselines import neighbourhood, patches, pixel_baselines, ridge_accuracy
from distill.data.scenes.layout import draw_scene
from distill.data.scenes.render import render_image
from distill.data.scenes.shapes import SHAPES, Paint
from distill.data.scenes.world import OWN_LOOKS, PAIRS, look_of
from distill.errors import UserError


def test_pairs_share_a_look_as_far_as_asked():
    names = {name for pair in PAIRS for name in pair}
    assert len(names) == 2 * len(PAIRS)
    assert names <= set(THINGS)
    assert set(OWN_LOOKS) == {second for _, second in PAIRS}
    for shared, expected in ((1.0, len(PAIRS)), (0.4, 2), (0.0, 0)):
        world = World(shared_pairs=shared)
        assert sum(look_of(a, world) == look_of(b, world) for a, b in PAIRS) == expected


def test_shapes_fill_the_extent_that_placement_counts_on():
    at = (np.arange(400, dtype=np.float32) + 0.5) / 100 - 2
    u, v = np.meshgrid(at, at)
    one = np.ones((3, 1, 1), np.float32)
    assert set(SHAPES) == set(THINGS)
    for name, kind in THINGS.items():
        paint = Paint(one, one, one, kind.look.pattern, (1.0, 1.0), 1.0, 0.01)
        distance, rgb = SHAPES[name](u, v, paint)
        assert rgb.shape == (3, 400, 400)
        inside = distance < 0
        assert abs(np.abs(u[inside]).max() - kind.extent[0]) < 0.07, name
        assert abs(np.abs(v[inside]).max() - kind.extent[1]) < 0.07, name


@pytest.mark.parametrize("change", [{"things": (0, 2)}, {"things": (3, 2)}, {"things": (2, 13)}, {"sizes": (0.8, 0.4)}])
def test_impossible_worlds_are_refused(change):
    with pytest.raises(UserError, match="Allowed"):
        World(**change)


@pytest.mark.parametrize("change", [{"things": (12, 12)}, {"max_hidden": 0.0}, {"sizes": (1.5, 2.0)}, {"turn": 3.0}])
def test_extreme_worlds_can_still_be_drawn(change):
    world = World(**change)
    for index in range(5):
        scene = draw_scene(world, 0, "test", index)
        _, owner = render_image(scene, world, 64)
        assert owner.max() == len(scene.things) + 1


def test_knobs_without_jitter_give_one_look():
    world = World(hue_jitter=0, tone_jitter=0)
    colours = {
        thing.surface.first
        for index in range(60)
        for thing in draw_scene(world, 0, "train", index).things
        if thing.name == "ball"
    }
    assert len(colours) == 1


def test_contrast_is_the_strength_of_patterns():
    empty = replace(draw_scene(World(two_regions=0.0), 0, "train", 0), things=())
    spread = [render_image(empty, World(contrast=contrast), 64)[0].std((0, 1)).max() for contrast in (0.0, 0.4, 0.8)]
    assert spread[0] == 0
    assert spread[1] > 2
    assert 1.8 < spread[2] / spread[1] < 2.2


def test_neighbourhood_holds_the_patches_around():
    features = np.arange(2 * 64, dtype=np.float32).reshape(2, 8, 8, 1)
    around = neighbourhood(features)
    assert around[1, 3, 4].tolist() == [64 + 8 * (3 + y) + 4 + x for y in (-1, 0, 1) for x in (-1, 0, 1)]
    assert around[0, 0, 0].tolist() == [0, 0, 1, 0, 0, 1, 8, 8, 9]


def test_ridge_separates_what_is_separable():
    rng = np.random.RandomState(0)
    labels = rng.randint(0, 4, (6, 8, 8))
    features = rng.randn(6, 8, 8, 5).astype(np.float32) * 0.1
    features[..., :4] += np.eye(4, dtype=np.float32)[labels]
    assert ridge_accuracy(features[:4], labels[:4], features[4:], labels[4:]) > 0.99


def test_patches_carry_their_centres_class(make_source):
    pixels, labels = patches("test", 3)
    sample = make_source("test")[2]
    assert labels[2, 5, 1] == sample.mask[5 * 8 + 4, 1 * 8 + 4]
    np.testing.assert_allclose(pixels[2, 5, 1], sample.image[40:48, 8:16].ravel() / 255 - 0.5, atol=1e-6)


def test_pixels_alone_do_not_solve_the_world_and_context_helps():
    scores = pixel_baselines(128)
    assert 0.3 < scores["raw pixels, 1 x 1 patch"] < 0.65
    assert scores["random layer, 3 x 3 patches"] > scores["random layer, 1 x 1 patch"] + 0.02
