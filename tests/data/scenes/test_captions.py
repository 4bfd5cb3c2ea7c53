from __future__ import annotations

import re

import numpy as np
import pytest

from distill.data.scenes import REGIONS, SCENE_CLASSES, THINGS, World, caption_corpus
from distill.data.scenes.captions import captions_of
from distill.data.scenes.layout import draw_scene

COUNT = 2000
COLOURS = {"red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown", "white", "black", "grey"}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9_]+", text.lower())


def named(text: str, classes) -> set[str]:
    return set(words(text)) & set(classes)


@pytest.fixture(scope="module")
def written():
    world = World()
    scenes = [draw_scene(world, 0, "train", index) for index in range(COUNT)]
    return [(scene, captions_of(scene, world, 0, "train", index)) for index, scene in enumerate(scenes)]


def test_synthetic_names_everything_and_nothing_else(written):
    for scene, captions in written:
        (text,) = captions["synthetic"]
        assert named(text, THINGS) == {thing.name for thing in scene.things}
        assert named(text, REGIONS) == {region.name for region in scene.regions}
        assert text.count(".") == 1


def test_detailed_names_everything_in_at_most_45_words(written):
    for scene, captions in written:
        (text,) = captions["detailed"]
        assert named(text, SCENE_CLASSES) == {part.name for part in (*scene.things, *scene.regions)}
        assert len(text.split()) <= 45


def test_web_names_one_or_two_things_and_is_wrong_at_the_stated_rate(written):
    wrong, ground, partial = 0, 0, 0
    for scene, captions in written:
        (text,) = captions["web"]
        there = {thing.name for thing in scene.things}
        things = named(text, THINGS)
        assert 1 <= len(things) <= 2
        wrong += bool(things - there)
        partial += things < there
        regions = named(text, REGIONS)
        assert regions <= {region.name for region in scene.regions}
        ground += bool(regions)
        assert len(text.split()) <= 12
    assert 0.10 < wrong / COUNT < 0.15
    assert 0.2 < ground / COUNT < 0.3
    assert partial / COUNT > 0.5


def test_the_rate_of_wrong_names_is_a_knob():
    world = World(web_wrong=0.0, web_ground=1.0)
    for index in range(200):
        scene = draw_scene(world, 0, "train", index)
        (text,) = captions_of(scene, world, 0, "train", index)["web"]
        assert named(text, THINGS) <= {thing.name for thing in scene.things}
        assert len(named(text, REGIONS)) == 1


def test_no_colours_and_a_small_vocabulary():
    vocabulary = {word for text in caption_corpus(1500) for word in words(text)}
    assert not vocabulary & COLOURS
    assert set(SCENE_CLASSES) <= vocabulary
    assert len(vocabulary) < 300


def test_captions_vary(written):
    for field in ("web", "synthetic", "detailed"):
        assert len({captions[field][0] for _, captions in written}) > 0.3 * COUNT


RELATION = re.compile(r"(\w+) (to the left of|to the right of|above|below|in front of|behind) the (\w+)")
PLACE = re.compile(r"(\w+) (?:at the|on the|in the) ((?:top|bottom|left|right|middle)(?: left| right)?)")


def test_relations_hold_in_the_layout(written):
    seen = set()
    for scene, captions in written:
        things = {thing.name: thing for thing in scene.things}
        for subject, relation, object_ in RELATION.findall(captions["detailed"][0]):
            a, b = things[subject], things[object_]
            truth = {
                "to the left of": a.x < b.x,
                "to the right of": a.x > b.x,
                "above": a.y < b.y,
                "below": a.y > b.y,
                "in front of": a.depth < b.depth,
                "behind": a.depth > b.depth,
            }
            assert truth[relation]
            seen.add(relation)
    assert len(seen) == 6


def test_relations_and_places_can_be_seen_in_the_picture(drawn):
    """Centres of the visible pixels, which occlusion may move a little."""
    right = total = 0
    for _, sample in drawn:
        text = sample.captions["detailed"][0]
        centres = {}
        for number in np.unique(sample.mask):
            rows, columns = np.nonzero(sample.mask == number)
            centres[SCENE_CLASSES[number]] = (columns.mean() / 64, rows.mean() / 64)
            if number < len(THINGS):
                depth = float(np.median(sample.depth[sample.mask == number]))
                centres[SCENE_CLASSES[number]] += (depth,)
        for subject, relation, object_ in RELATION.findall(text):
            (x, y, z), (x2, y2, z2) = centres[subject], centres[object_]
            total += 1
            right += {
                "to the left of": x < x2,
                "to the right of": x > x2,
                "above": y < y2,
                "below": y > y2,
                "in front of": z < z2,
                "behind": z > z2,
            }[relation]
        for subject, place in PLACE.findall(text):
            x, y, _ = centres[subject]
            total += 1
            right += (
                ("left" not in place or x < 0.5)
                and ("right" not in place or x > 0.5)
                and ("top" not in place or y < 0.5)
                and ("bottom" not in place or y > 0.5)
                and ("middle" not in place or (0.2 < x < 0.8 and 0.2 < y < 0.8))
            )
    assert total > 500
    assert right / total > 0.97


def test_large_and_small_follow_the_size_in_the_picture(written):
    large, small = [], []
    for scene, captions in written:
        for thing in scene.things:
            if f"large {thing.name}" in captions["detailed"][0]:
                large.append(thing.half)
            if f"small {thing.name}" in captions["detailed"][0]:
                small.append(thing.half)
    assert min(len(large), len(small)) > 200
    assert min(large) > max(small)
