from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distill.data.scenes import REGIONS, SCENE_CLASSES, THINGS, World
from distill.data.scenes.layout import SKY_DEPTH, draw_scene
from distill.data.scenes.render import FIRST_THING, render_geometry, render_image


@pytest.mark.parametrize(("small", "large"), [(64, 128), (32, 96)])
def test_a_scene_looks_the_same_at_every_size(make_source, small, large):
    coarse, fine = make_source(size=small), make_source(size=large)
    factor = large // small
    for index in range(25):
        a, b = coarse[index], fine[index]
        assert (a.mask == b.mask[factor // 2 :: factor, factor // 2 :: factor]).mean() > 0.9
        assert a.captions == b.captions
        mean = b.image.reshape(small, factor, small, factor, 3).mean((1, 3))
        assert np.abs(a.image - mean).mean() < 16


def test_every_class_occurs_about_as_often_as_the_others(drawn):
    share = np.zeros(len(SCENE_CLASSES))
    for _, sample in drawn:
        share[np.unique(sample.mask)] += 1 / len(drawn)
    expected = 3 / len(THINGS)  # 2 to 4 things an image
    assert share[: len(THINGS)].min() > 0.6 * expected
    assert share[: len(THINGS)].max() < 1.5 * expected
    assert share[len(THINGS) :].min() > 0.15
    assert share[len(THINGS) :].max() < 0.55


def test_things_cover_a_good_part_of_the_picture(drawn):
    covered = np.mean([(sample.mask < len(THINGS)).mean() for _, sample in drawn])
    assert 0.33 < covered < 0.5


def test_all_that_is_there_can_be_seen(drawn):
    for scene, sample in drawn:
        names = [thing.name for thing in scene.things] + [region.name for region in scene.regions]
        seen = {SCENE_CLASSES[number]: int((sample.mask == number).sum()) for number in np.unique(sample.mask)}
        assert set(seen) == set(names)
        assert min(seen.values()) >= 40  # of 4096 pixels


def grown(region: np.ndarray) -> np.ndarray:
    """The region and all pixels that touch it."""
    padded = np.pad(region, 1)
    side = len(region)
    return np.any([padded[y : y + side, x : x + side] for y in range(3) for x in range(3)], axis=0)


def test_labels_follow_the_pixels():
    """The nearest thing changes the pixels labelled with it and, beyond its soft edge, no others."""
    world = World(contrast=0.85)  # so that no thing melts into its ground
    for index in range(20):
        scene = draw_scene(world, 1, "train", index)
        image, owner = render_image(scene, world, 64)
        without, _ = render_image(replace(scene, things=scene.things[:-1]), world, 64)
        change = np.abs(image.astype(int) - without).max(-1)
        mine = owner == FIRST_THING + len(scene.things) - 1
        assert (change[mine] > 8).mean() > 0.9
        assert change[~grown(grown(mine))].max() <= 8  # a tip thinner than a pixel leaves a trace


def test_nearer_things_hide_farther_ones(drawn):
    hidden = 0
    for scene, sample in drawn[:100]:
        depths = [thing.depth for thing in scene.things]
        assert depths == sorted(depths, reverse=True)
        for number, thing in enumerate(scene.things[:-1]):
            alone = replace(scene, things=(thing,))
            whole = render_image(alone, World(), 64)[1] >= FIRST_THING
            lost = whole & (sample.mask != SCENE_CLASSES.index(thing.name))
            nearer = [SCENE_CLASSES.index(other.name) for other in scene.things[number + 1 :]]
            assert np.isin(sample.mask[lost], nearer).all()
            hidden += lost.sum() > 20
    assert hidden > 50


def test_depth_orders_what_is_seen(drawn):
    for scene, sample in drawn[:100]:
        for thing in scene.things:
            own = sample.depth[sample.mask == SCENE_CLASSES.index(thing.name)]
            relief = THINGS[thing.name].relief * thing.half * thing.depth
            assert own.max() <= thing.depth + 1e-3 + relief  # corners of the frame bend back
            assert own.min() >= thing.depth - relief - 1e-3
        for region in scene.regions:
            own = sample.mask == SCENE_CLASSES.index(region.name)
            rows = np.array([row[here].mean() for row, here in zip(sample.depth, own) if here.any()])
            if region is scene.lower:
                assert (np.diff(rows) < 0).all()  # a ground comes nearer row by row
            if region.name == "sky":
                assert np.allclose(rows, SKY_DEPTH)


def test_normals_are_those_of_the_depth_map():
    """Against the cross product of neighbouring points, back-projected through a pinhole of focal length 1."""
    size = 192
    for index in range(8):
        scene = draw_scene(World(), 2, "test", index)
        _, owner = render_image(scene, World(), size)
        depth, normals = render_geometry(scene, owner)
        at = (np.arange(size) + 0.5) / size - 0.5
        points = np.stack([at[None, :] * depth, -at[:, None] * depth, -depth], -1).astype(np.float64)
        right = (points[1:-1, 2:] - points[1:-1, :-2]) / 2
        up = (points[:-2, 1:-1] - points[2:, 1:-1]) / 2
        expected = np.cross(right, up)
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
        inner = np.ones((size - 2, size - 2), bool)
        for y in range(3):
            for x in range(3):
                inner &= owner[y : y + size - 2, x : x + size - 2] == owner[1:-1, 1:-1]
        cosine = (expected * normals[1:-1, 1:-1]).sum(-1)[inner]
        assert inner.mean() > 0.7
        assert cosine.min() > 0.999


def test_walls_face_the_viewer_and_grounds_face_up(drawn):
    for scene, sample in drawn[:60]:
        for region in scene.regions:
            normals = sample.normals[sample.mask == SCENE_CLASSES.index(region.name)]
            if region is scene.upper:
                assert np.allclose(normals, (0, 0, 1), atol=1e-5)
            else:
                assert (normals[:, 1] > 0.7).all()
                assert np.abs(normals[:, 0]).max() < 1e-5


def test_only_some_grounds_lie_below(drawn):
    assert {scene.upper.name for scene, _ in drawn if scene.upper} == {"sky", "brick", "wood"}
    assert {scene.lower.name for scene, _ in drawn if scene.lower} == set(REGIONS) - {"sky"}
    assert any(len(scene.regions) == 1 for scene, _ in drawn)
