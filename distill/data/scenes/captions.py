"""Captions of a scene at three granularities, from its layout alone.

- web: short and noisy, as alt-text: one or two of the things, at times a ground, at times a thing that is not there.
- synthetic: one sentence with all things and grounds.
- detailed: all of these with sizes, positions and relations, 45 words or fewer.

Colours are never named: with them, captions could be told apart by colour alone.
"""

from __future__ import annotations

from random import Random

from distill.data.scenes.layout import Scene, Thing, overlap
from distill.data.scenes.world import THINGS, World

APART = 0.2  # least distance between centres, in image sides, for "left of", "above" ...

_WEB = (
    "{} photo",
    "img_2041 {}",
    "dsc_0087 {} jpg",
    "{} for sale!",
    "my {} :)",
    "buy {} online, free shipping",
    "best {} ever",
    "{} stock image",
    "{} wallpaper hd",
    "click to see {}",
    "{} - page 2",
    "new {} 2024",
    "{}",
    "our holiday, {}",
    "cute {} #fun",
)
_WEB_GROUND = ("{} on {}", "{} and {}", "{}, {}", "{} {} background")
_WEB_PAIR = ("{} and {}", "{} with {}", "{}, {}", "{} {}")

_TWO_REGIONS = (
    "a picture of {things} with {upper} above and {lower} below.",
    "{things}, with {lower} below and {upper} behind.",
    "there is {things} between {upper} and {lower}.",
    "{things} in a scene of {upper} and {lower}.",
    "an image showing {things}, {upper} and {lower}.",
)
_ONE_REGION = (
    "a picture of {things} with {region} all around.",
    "{things} in front of {region}.",
    "there is {things} on {region}.",
    "{things} in a scene of {region}.",
    "an image showing {things} and {region}.",
)


def captions_of(scene: Scene, world: World, seed: int, split: str, index: int) -> dict[str, list[str]]:
    """One caption a field: `web`, `synthetic`, `detailed`. The words have a random stream of their own."""
    rng = Random(f"{seed}-{split}-{index}-captions")
    return {
        "web": [_web(rng, scene, world)],
        "synthetic": [_synthetic(rng, scene)],
        "detailed": [_detailed(rng, scene, world)],
    }


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _list(nouns: list[str]) -> str:
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"


def _web(rng: Random, scene: Scene, world: World) -> str:
    names = [thing.name for thing in scene.things]
    named = rng.sample(names, 1 if rng.random() < 0.5 else min(2, len(names)))
    if rng.random() < world.web_wrong:
        named[0] = rng.choice([name for name in THINGS if name not in names])
    text = named[0] if len(named) == 1 else rng.choice(_WEB_PAIR).format(*named)
    if rng.random() < world.web_ground:
        text = rng.choice(_WEB_GROUND).format(text, rng.choice(scene.regions).name)
    return rng.choice(_WEB).format(text)


def _synthetic(rng: Random, scene: Scene) -> str:
    things = _list([_a(thing.name) for thing in rng.sample(scene.things, len(scene.things))])
    if scene.upper is not None and scene.lower is not None:
        return rng.choice(_TWO_REGIONS).format(things=things, upper=scene.upper.name, lower=scene.lower.name)
    return rng.choice(_ONE_REGION).format(things=things, region=scene.regions[0].name)


# ------------------------------------------------------------------------------------------------ detailed


def _detailed(rng: Random, scene: Scene, world: World) -> str:
    things = rng.sample(scene.things, len(scene.things))
    phrases = [f"{_sized(things[0], world)} {place_of(things[0])}"]
    for number, thing in enumerate(things[1:], 1):
        known = [(relation, other) for other in things[:number] for relation in relations(thing, other)]
        if known:
            relation, other = rng.choice(known)
            phrases.append(f"{_sized(thing, world)} {relation} the {other.name}")
        else:
            phrases.append(f"{_sized(thing, world)} {place_of(thing)}")
    if scene.upper is not None and scene.lower is not None:
        return f"{_list(phrases)}, with {scene.upper.name} above and {scene.lower.name} below."
    return f"{_list(phrases)}, with {scene.regions[0].name} all around."


def _sized(thing: Thing, world: World) -> str:
    """With an article, and "large" or "small" for the upper and lower third of sizes as they are seen."""
    low, high = world.sizes
    side = 2 * thing.half
    if side > low + 0.67 * (high - low):
        return f"a large {thing.name}"
    if side < low + 0.33 * (high - low):
        return f"a small {thing.name}"
    return _a(thing.name)


def place_of(thing: Thing) -> str:
    """Where the middle of a thing is, by thirds of the picture: "at the top left", "in the middle"."""
    column = "left" if thing.x < 0.36 else "right" if thing.x > 0.64 else ""
    row = "top" if thing.y < 0.36 else "bottom" if thing.y > 0.64 else ""
    if row:
        return f"at the {row} {column}".rstrip()
    return f"on the {column}" if column else "in the middle"


def relations(thing: Thing, other: Thing) -> list[str]:
    """Every relation of `thing` to `other` that is plainly true; none when they are too close to call."""
    found = []
    if abs(thing.x - other.x) > APART:
        found.append("to the left of" if thing.x < other.x else "to the right of")
    if abs(thing.y - other.y) > APART:
        found.append("above" if thing.y < other.y else "below")
    if overlap(thing.box, other.box) > 0.02:
        found.append("in front of" if thing.depth < other.depth else "behind")
    return found
