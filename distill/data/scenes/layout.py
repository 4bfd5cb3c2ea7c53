"""What is where in a scene: drawn from (seed, split, index) alone, in image sides, before any pixel.

Camera: a pinhole with focal length 1 (image side), x to the right and y down from the upper left corner. Depth is the
distance along the viewing axis; the ground at the lower border has depth 1.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from random import Random

from distill.data.scenes.world import BACKDROPS, HSV, REGIONS, THINGS, Look, World, look_of

RGB = tuple[float, float, float]  # each in [0, 255]
GROUND_OFFSET = 0.35  # keeps depth finite where the ground meets the horizon
SKY_DEPTH = 8.0
Box = tuple[float, float, float, float]  # left, upper, right, lower


@dataclass(frozen=True, slots=True)
class Surface:
    """Colours of one instance, and where its pattern starts."""

    look: Look
    first: RGB
    second: RGB
    part: RGB
    offset: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing: the centre of its frame, half the frame's side, rotation (radians), mirrored or not, and depth."""

    name: str
    x: float
    y: float
    half: float
    turn: float
    mirror: bool
    depth: float
    surface: Surface

    @property
    def box(self) -> Box:
        """Bounding box of the unturned shape."""
        return _box(self.name, self.x, self.y, self.half)


@dataclass(frozen=True, slots=True)
class Horizon:
    """The border between the regions, `y = level + slope (x - 1/2) + swing sin(2 pi (cycles x + phase))`."""

    level: float
    slope: float
    swing: float
    cycles: float
    phase: float


@dataclass(frozen=True, slots=True)
class Region:
    name: str
    surface: Surface


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole layout. One of `upper` and `lower` may be missing: the other then fills the picture."""

    upper: Region | None
    lower: Region | None
    horizon: Horizon
    things: tuple[Thing, ...]  # from far to near
    light: float

    @property
    def regions(self) -> tuple[Region, ...]:
        return tuple(region for region in (self.upper, self.lower) if region is not None)


def ground_depth(y: float, level: float) -> float:
    """Depth of the ground plane at height `y` of the image when the horizon is at `level`."""
    return (1 - level + GROUND_OFFSET) / max(y - level + GROUND_OFFSET, 0.05)


def upright_depth(scene: Scene) -> float:
    """Depth of the upper region: the sky, or a wall where the ground ends."""
    if scene.upper is not None and scene.upper.name == "sky":
        return SKY_DEPTH
    return ground_depth(scene.horizon.level - 0.12, scene.horizon.level)


def overlap(a: Box, b: Box) -> float:
    """Area common to two boxes."""
    width = (a[2] if a[2] < b[2] else b[2]) - (a[0] if a[0] > b[0] else b[0])
    height = (a[3] if a[3] < b[3] else b[3]) - (a[1] if a[1] > b[1] else b[1])
    return width * height if width > 0 and height > 0 else 0.0


def draw_scene(world: World, seed: int, split: str, index: int) -> Scene:
    """The layout of scene `index` of a split: a pure function of its arguments."""
    rng = Random(f"{seed}-{split}-{index}")
    upper, lower = _draw_regions(rng, world)
    if upper is not None and lower is not None:
        level = rng.uniform(0.28, 0.62)
    else:
        level = rng.uniform(-0.15, 0.0) if lower is not None else 0.5
    horizon = Horizon(
        level, rng.uniform(-0.16, 0.16), rng.uniform(0.0, 0.035), rng.uniform(0.5, 2.0), rng.uniform(0.0, 1.0)
    )
    names = rng.sample(list(THINGS), rng.randint(*world.things))
    things = _place(rng, world, names, None if lower is None else level)
    light = 1 + rng.uniform(-world.light_jitter, world.light_jitter)
    return Scene(upper, lower, horizon, things, light)


def _draw_regions(rng: Random, world: World) -> tuple[Region | None, Region | None]:
    if rng.random() < world.two_regions:
        above, below = rng.choice(BACKDROPS)
        return _region(rng, world, above), _region(rng, world, below)
    name = rng.choice(list(REGIONS))
    region = _region(rng, world, name)
    return (region, None) if REGIONS[name].upright_alone else (None, region)


def _region(rng: Random, world: World, name: str) -> Region:
    return Region(name, _surface(rng, world, REGIONS[name].look))


def _surface(rng: Random, world: World, look: Look) -> Surface:
    """One jitter for all colours of an instance, so that its pattern keeps its contrast."""
    hue = rng.uniform(-world.hue_jitter, world.hue_jitter)
    saturation = 1 + rng.uniform(-world.tone_jitter, world.tone_jitter)
    value = 1 + rng.uniform(-world.tone_jitter, world.tone_jitter)

    def colour(hsv: HSV) -> RGB:
        red, green, blue = colorsys.hsv_to_rgb(hsv[0] + hue, min(hsv[1] * saturation, 1.0), min(hsv[2] * value, 1.0))
        return red * 255, green * 255, blue * 255

    offset = (rng.uniform(0.0, 4.0), rng.uniform(0.0, 4.0))
    return Surface(look, colour(look.first), colour(look.second), colour(look.part), offset)


Pose = tuple[float, float, float, float]  # x and y of the frame's centre, half its side, depth


def _place(rng: Random, world: World, names: list[str], ground: float | None) -> tuple[Thing, ...]:
    """Things from far to near. A layout that hides one too much is drawn again, each time with smaller things."""
    shrink = (3 / len(names)) ** 0.3  # a few things are larger than many
    while True:
        slots = rng.sample(range(len(names)), len(names))
        spots = [
            (_pose(rng, world, name, (slot + rng.uniform(0.2, 0.8)) / len(names), shrink, ground), name)
            for name, slot in zip(names, slots)
        ]
        spots.sort(key=lambda spot: -spot[0][3])
        if _most_hidden([_box(name, *pose[:3]) for pose, name in spots]) <= world.max_hidden:
            return tuple([_thing(rng, world, name, pose) for pose, name in spots])
        shrink *= 0.93


def _pose(rng: Random, world: World, name: str, x: float, shrink: float, ground: float | None) -> Pose:
    """A place near `x`. One that stands has its foot on the ground, the others hang in the air before it.

    `ground`: the horizon's level, or None where there is no ground.
    """
    kind = THINGS[name]
    side = rng.uniform(*world.sizes) * kind.scale * shrink
    if kind.stands and ground is not None:
        foot = rng.uniform(max(ground + 0.15, 0.35), 1.06)
        depth = ground_depth(foot, ground)
        half = 0.5 * side * math.sqrt(1.3 / depth)
        y = foot - half * kind.extent[1]
    else:
        y = rng.uniform(0.15, 0.85 if ground is None else 0.72)
        farthest = 2.4 if ground is None else ground_depth(y + side / 2, ground)
        depth = rng.uniform(0.9, max(min(farthest, 2.4), 0.95))
        half = 0.5 * side * math.sqrt(1.3 / depth)
    x = min(max(x, 0.7 * half), 1 - 0.7 * half)  # at most a little of it outside
    return x, y, half, depth


def _thing(rng: Random, world: World, name: str, pose: Pose) -> Thing:
    x, y, half, depth = pose
    turn = rng.uniform(-world.turn, world.turn) * (0.5 if THINGS[name].stands else 1.0)
    return Thing(name, x, y, half, turn, rng.random() < 0.5, depth, _surface(rng, world, look_of(name, world)))


def _box(name: str, x: float, y: float, half: float) -> Box:
    """Bounding box of an unturned shape."""
    width, height = THINGS[name].extent
    return x - half * width, y - half * height, x + half * width, y + half * height


def _most_hidden(boxes: list[Box]) -> float:
    """Upper bound, over boxes from far to near, of the share that lies outside the image or under nearer boxes."""
    most = 0.0
    for number, box in enumerate(boxes):
        area = (box[2] - box[0]) * (box[3] - box[1])
        inside = overlap(box, (0.0, 0.0, 1.0, 1.0))
        covered = sum([overlap(box, nearer) for nearer in boxes[number + 1 :]])
        most = max(most, (area - inside + covered) / area)
    return most
