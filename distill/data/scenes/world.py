"""The world: which things and grounds exist, what they look like, and every knob of its difficulty.

13 things and 6 grounds. A class is known by its look (hue family and pattern, jittered for each instance) together
with its shape or surroundings:

- pairs can share one look and differ in shape only: ball and box (by default this pair alone), tree and bush, star and
  moon, mug and umbrella, kite and tent (`World.shared_pairs` says how many of them do);
- ball and cookie share a shape; tree and bush have the greens of grass, cookie and box the browns and reds of sand,
  wood and brick;
- sky and water share their colours: one lies above the horizon, the other below it.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.data.scenes import textures
from distill.data.scenes.textures import Pattern
from distill.errors import UserError

HSV = tuple[float, float, float]  # hue (a full turn is 1), saturation, value, each in [0, 1]


@dataclass(frozen=True)
class World:
    """Knobs of difficulty. Lengths are in image sides, so nothing here depends on the size in pixels."""

    things: tuple[int, int] = (2, 4)  # least and most things in a scene, all of different classes
    sizes: tuple[float, float] = (0.54, 0.80)  # width of a thing's frame at middle distance
    max_hidden: float = 0.5  # largest share of a thing's frame that nearer frames or the border may hide
    turn: float = 0.2  # largest rotation, radians
    two_regions: float = 0.85  # probability of an upper and a lower region, rather than one
    hue_jitter: float = 0.0075  # largest shift of an instance's hue
    tone_jitter: float = 0.045  # largest relative change of an instance's saturation and brightness
    light_jitter: float = 0.045  # largest relative change of a scene's brightness
    contrast: float = 0.35  # strength of the patterns on things and regions: 0 none, 1 full
    shared_pairs: float = 0.2  # share of PAIRS with one look for both classes
    web_wrong: float = 0.12  # probability that a web caption names a thing that is not there
    web_ground: float = 0.25  # probability that a web caption names a region

    def __post_init__(self) -> None:
        least, most = self.things
        if not 1 <= least <= most < len(THINGS):
            raise UserError(f"World.things is {self.things}. Allowed: 1 <= least <= most <= {len(THINGS) - 1}.")
        if not 0 < self.sizes[0] <= self.sizes[1]:
            raise UserError(f"World.sizes is {self.sizes}. Allowed: 0 < least <= most, in image sides, as (0.54, 0.8).")


@dataclass(frozen=True)
class Look:
    """A surface: two colours, a pattern that mixes them, and a colour for small parts (a door, a trunk, an eye)."""

    first: HSV
    second: HSV
    pattern: Pattern
    part: HSV = (0.08, 0.5, 0.3)


@dataclass(frozen=True)
class ThingKind:
    """A class of things. `extent`: half width and half height of its shape inside the frame `[-1, 1]`."""

    look: Look
    extent: tuple[float, float]
    stands: bool  # on the ground, or anywhere in the air
    relief: float  # how far its middle stands out, in half sizes
    scale: float = 1.0  # of `World.sizes`


@dataclass(frozen=True)
class RegionKind:
    """A class of regions."""

    look: Look
    upright_alone: bool  # filling the picture it is upright (a sky, a wall), else a ground seen in perspective


RED_STRIPES = Look((0.99, 0.80, 0.85), (0.10, 0.08, 0.97), textures.stripes)
CARDBOARD = Look((0.09, 0.45, 0.75), (0.08, 0.55, 0.55), textures.planks)
FOLIAGE = Look((0.32, 0.75, 0.38), (0.25, 0.65, 0.72), textures.leaves, (0.07, 0.60, 0.36))
BERRIES = Look((0.42, 0.60, 0.35), (0.95, 0.70, 0.75), textures.chips, (0.07, 0.60, 0.36))
GOLD = Look((0.145, 0.75, 0.99), (0.12, 0.85, 0.88), textures.plain)
SILVER = Look((0.60, 0.06, 0.90), (0.60, 0.10, 0.70), textures.leaves)
PURPLE_DOTS = Look((0.78, 0.55, 0.68), (0.83, 0.12, 0.98), textures.dots, (0.75, 0.35, 0.30))
PINK_SCALES = Look((0.92, 0.50, 0.95), (0.90, 0.25, 0.98), textures.scales, (0.75, 0.35, 0.30))
BLUE_CHECKS = Look((0.60, 0.78, 0.72), (0.50, 0.45, 0.95), textures.checks, (0.62, 0.60, 0.25))
KHAKI = Look((0.20, 0.45, 0.55), (0.20, 0.50, 0.42), textures.stripes, (0.20, 0.40, 0.20))
PLASTER = Look((0.12, 0.22, 0.96), (0.12, 0.28, 0.85), textures.planks, (0.01, 0.62, 0.55))
DOUGH = Look((0.085, 0.52, 0.80), (0.06, 0.65, 0.30), textures.chips)
ORANGE_SCALES = Look((0.055, 0.88, 0.96), (0.10, 0.60, 0.99), textures.scales, (0.0, 0.0, 0.10))

THINGS: dict[str, ThingKind] = {
    "ball": ThingKind(RED_STRIPES, (0.82, 0.82), True, 0.8, 0.9),
    "box": ThingKind(RED_STRIPES, (0.80, 0.74), True, 0.0, 0.95),
    "tree": ThingKind(FOLIAGE, (0.80, 1.00), True, 0.4, 1.15),
    "bush": ThingKind(FOLIAGE, (1.00, 0.62), True, 0.4, 1.05),
    "star": ThingKind(GOLD, (0.96, 0.96), False, 0.1, 1.1),
    "moon": ThingKind(GOLD, (0.86, 0.90), False, 0.1, 1.05),
    "mug": ThingKind(PURPLE_DOTS, (0.98, 0.80), True, 0.3, 0.9),
    "umbrella": ThingKind(PURPLE_DOTS, (1.00, 0.92), False, 0.3, 1.1),
    "kite": ThingKind(BLUE_CHECKS, (0.78, 1.00), False, 0.0, 1.05),
    "tent": ThingKind(BLUE_CHECKS, (1.00, 0.78), True, 0.2, 1.05),
    "house": ThingKind(PLASTER, (0.92, 0.96), True, 0.0, 1.1),
    "fish": ThingKind(ORANGE_SCALES, (1.00, 0.60), False, 0.4, 1.1),
    "cookie": ThingKind(DOUGH, (0.82, 0.82), True, 0.2, 0.85),
}

PAIRS = (("ball", "box"), ("tree", "bush"), ("star", "moon"), ("mug", "umbrella"), ("kite", "tent"))
OWN_LOOKS = {"box": CARDBOARD, "bush": BERRIES, "moon": SILVER, "umbrella": PINK_SCALES, "tent": KHAKI}

SKY_BLUE, CLOUD_WHITE = (0.57, 0.55, 0.88), (0.57, 0.18, 0.98)

REGIONS: dict[str, RegionKind] = {
    "sky": RegionKind(Look(SKY_BLUE, CLOUD_WHITE, textures.clouds), True),
    "water": RegionKind(Look(SKY_BLUE, CLOUD_WHITE, textures.ripples), False),
    "grass": RegionKind(Look((0.29, 0.70, 0.48), (0.24, 0.60, 0.74), textures.blades), False),
    "sand": RegionKind(Look((0.115, 0.40, 0.92), (0.10, 0.45, 0.74), textures.grains), False),
    "brick": RegionKind(Look((0.025, 0.58, 0.62), (0.08, 0.15, 0.85), textures.bricks), True),
    "wood": RegionKind(Look((0.085, 0.52, 0.72), (0.07, 0.62, 0.40), textures.boards), True),
}

_OUTDOORS = (("sky", "grass"), ("sky", "sand"), ("sky", "water"))
# (upper, lower), each as likely as the others
BACKDROPS = (
    *_OUTDOORS,
    *_OUTDOORS,
    ("brick", "grass"),
    ("brick", "sand"),
    ("brick", "water"),
    ("brick", "wood"),
    ("wood", "grass"),
    ("wood", "sand"),
    ("wood", "water"),
    ("wood", "brick"),
)

SCENE_CLASSES: list[str] = [*THINGS, *REGIONS]


def look_of(name: str, world: World) -> Look:
    """The look of a thing: the second of a pair keeps its own when `world.shared_pairs` leaves the pair apart."""
    for number, (_, second) in enumerate(PAIRS):
        if name == second and number >= round(world.shared_pairs * len(PAIRS)):
            return OWN_LOOKS[name]
    return THINGS[name].look
