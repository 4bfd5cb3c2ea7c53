"""From a layout to pixels: image and labels, then depth and surface normals.

Everything is sampled at pixel centres, so a scene looks the same at every size up to resolution. Colours are kept in
planes `[3, H, W]` float32 while painting. The image gives, besides colours, an owner map: 0 the upper region, 1 the
lower one, 2 + k thing k (from far to near); class indices and geometry follow from it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from distill.data.scenes.layout import (
    GROUND_OFFSET,
    RGB,
    Region,
    Scene,
    Thing,
    ground_depth,
    upright_depth,
)
from distill.data.scenes.shapes import SHAPES, Paint
from distill.data.scenes.world import SCENE_CLASSES, THINGS, World

UPPER, LOWER, FIRST_THING = 0, 1, 2
_EDGE = 0.72  # brightness at the border of a thing
_EDGE_WIDTH = 0.10  # of the frame's half side


@lru_cache(maxsize=8)
def _centres(size: int) -> np.ndarray:
    """Pixel centres in image sides, `[size]` float32."""
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)


def _colour(rgb: RGB) -> np.ndarray:
    return np.array(rgb, np.float32).reshape(3, 1, 1)


def render_image(scene: Scene, world: World, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image `[size, size, 3]` uint8 and owner map `[size, size]` uint8."""
    canvas = np.empty((3, size, size), np.float32)
    owner = np.empty((size, size), np.uint8)
    _paint_regions(scene, world, canvas, owner)
    for number, thing in enumerate(scene.things):
        _paint_thing(thing, world, canvas, owner, FIRST_THING + number)
    canvas *= scene.light
    np.minimum(canvas, 255.0, out=canvas)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0)), owner


def class_mask(scene: Scene, owner: np.ndarray) -> np.ndarray:
    """Class indices (into SCENE_CLASSES) `[H, W]` uint8 from an owner map."""
    names = [region.name if region else None for region in (scene.upper, scene.lower)]
    names += [thing.name for thing in scene.things]
    table = np.array([SCENE_CLASSES.index(name) if name else 255 for name in names], np.uint8)
    return table.take(owner)


# ------------------------------------------------------------------------------------------------ regions


def _border(scene: Scene, x: np.ndarray) -> np.ndarray:
    """Height of the border between the regions at each `x`."""
    line = scene.horizon
    return line.level + line.slope * (x - 0.5) + line.swing * np.sin((x * line.cycles + line.phase) * (2 * math.pi))


def _paint_regions(scene: Scene, world: World, canvas: np.ndarray, owner: np.ndarray) -> None:
    size = owner.shape[0]
    if scene.lower is None or scene.upper is None:
        region, number = (scene.upper, UPPER) if scene.upper is not None else (scene.lower, LOWER)
        assert region is not None
        owner[...] = number
        canvas[...] = _region_rows(region, scene, world, size, 0, size)
        return
    border = _border(scene, _centres(size))
    first, last = max(int(border.min() * size) - 1, 0), min(int(border.max() * size) + 2, size)
    canvas[:, :last] = _region_rows(scene.upper, scene, world, size, 0, last)
    lower = _region_rows(scene.lower, scene, world, size, first, size)
    canvas[:, last:] = lower[:, last - first :]
    below = _centres(size)[first:last, None] - border  # rows where both regions meet
    share = np.minimum(np.maximum(below * size + 0.5, 0.0), 1.0)
    canvas[:, first:last] += share * (lower[:, : last - first] - canvas[:, first:last])
    owner[:first], owner[last:] = UPPER, LOWER
    owner[first:last] = below >= 0


def _region_rows(region: Region, scene: Scene, world: World, size: int, start: int, stop: int) -> np.ndarray:
    """Colours of rows `start:stop` of a region, `[3, rows, size]`. A ground's pattern is drawn in perspective."""
    surface = region.surface
    x, y = _centres(size)[None, :] - 0.5, _centres(size)[start:stop, None]
    if region is scene.lower:
        level = scene.horizon.level
        depth = (1 - level + GROUND_OFFSET) / (y - level + GROUND_OFFSET)
        x, y = x * depth, depth
    share = surface.look.pattern(x + (2 + surface.offset[0]), y + surface.offset[1])
    first = _colour(surface.first)
    return first + (world.contrast * share) * (_colour(surface.second) - first)


# ------------------------------------------------------------------------------------------------ things


def _window(thing: Thing, size: int) -> tuple[int, int, int, int]:
    """Rows and columns that the turned frame may touch: `top, bottom, left, right`."""
    width, height = THINGS[thing.name].extent
    cos, sin = abs(math.cos(thing.turn)), abs(math.sin(thing.turn))
    reach_x, reach_y = thing.half * (cos * width + sin * height), thing.half * (cos * height + sin * width)
    margin = 1.0
    left = max(int((thing.x - reach_x) * size - margin), 0)
    right = min(int((thing.x + reach_x) * size + margin) + 1, size)
    top = max(int((thing.y - reach_y) * size - margin), 0)
    bottom = min(int((thing.y + reach_y) * size + margin) + 1, size)
    return top, bottom, left, right


def _frame(thing: Thing, size: int, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in the thing's frame, two arrays `[rows, columns]`."""
    top, bottom, left, right = window
    centres = _centres(size)
    dx = (centres[None, left:right] - thing.x) / thing.half
    dy = (centres[top:bottom, None] - thing.y) / thing.half
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    side = -1.0 if thing.mirror else 1.0
    return (side * cos) * dx + (side * sin) * dy, cos * dy - sin * dx


def _paint_thing(thing: Thing, world: World, canvas: np.ndarray, owner: np.ndarray, number: int) -> None:
    size = owner.shape[0]
    window = _window(thing, size)
    u, v = _frame(thing, size, window)
    surface = thing.surface
    first, second, part = np.array((surface.first, surface.second, surface.part), np.float32).reshape(3, 3, 1, 1)
    paint = Paint(
        first,
        second,
        part,
        surface.look.pattern,
        surface.offset,
        world.contrast,
        1 / (size * thing.half),
    )
    distance, rgb = SHAPES[thing.name](u, v, paint)
    # lit from above, rounder things more; darker towards the border
    shade = np.minimum(distance * (-(1 - _EDGE) / _EDGE_WIDTH) + _EDGE, 1.0)
    shade *= 1.02 - (0.06 + 0.22 * THINGS[thing.name].relief) * v
    cover = paint.cover(distance)
    rgb *= shade * cover
    top, bottom, left, right = window
    behind = canvas[:, top:bottom, left:right]
    behind *= 1 - cover
    behind += rgb
    owner[top:bottom, left:right][distance < 0] = number


# ------------------------------------------------------------------------------------------------ geometry


def render_geometry(scene: Scene, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth `[H, W]` float32 in image sides and unit normals `[H, W, 3]` float32.

    Normals point towards the viewer, in the axes (right, up, towards the viewer). For depth `z(x, y)` seen by the
    pinhole of `distill.data.scenes.layout`, the normal is along `(z_x, -z_y, z + x z_x + y z_y)` with `x`, `y` measured
    from the image's centre.
    """
    size = owner.shape[0]
    depth, slope_x, slope_y = _region_depth(scene, owner)
    for number, thing in enumerate(scene.things):
        _thing_depth(thing, owner, FIRST_THING + number, depth, slope_x, slope_y)
    offset = _centres(size) - np.float32(0.5)
    towards = slope_x * offset
    towards += slope_y * offset[:, None]
    towards += depth
    length = np.sqrt(slope_x * slope_x + slope_y * slope_y + towards * towards)
    normals = np.empty((size, size, 3), np.float32)
    np.divide(slope_x, length, out=normals[..., 0])
    np.divide(slope_y, -length, out=normals[..., 1])
    np.divide(towards, length, out=normals[..., 2])
    return depth, normals


def _region_depth(scene: Scene, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth of the regions and its slopes along x and y, each `[H, W]`, as if no thing were there."""
    size = owner.shape[0]
    y, level = _centres(size)[:, None], scene.horizon.level
    slope_x = np.zeros((size, size), np.float32)
    far = np.float32(upright_depth(scene))
    if scene.lower is None:
        return np.full((size, size), far), slope_x, slope_x.copy()
    drop = np.maximum(y - level + GROUND_OFFSET, 0.05)
    ground = (ground_depth(1.0, level) * (1 - level + GROUND_OFFSET)) / drop
    below = owner != UPPER  # where a thing stands, its own depth replaces this
    depth = np.where(below, ground, far)
    return depth, slope_x, np.where(below, -ground / drop, np.float32(0))


def _thing_depth(
    thing: Thing, owner: np.ndarray, number: int, depth: np.ndarray, slope_x: np.ndarray, slope_y: np.ndarray
) -> None:
    """A card facing the viewer whose middle stands out: `z = z0 (1 - relief half (1 - (u^2 + v^2) / 2))`."""
    size = owner.shape[0]
    window = _window(thing, size)
    top, bottom, left, right = window
    centres = _centres(size)
    dx = (centres[None, left:right] - thing.x) / thing.half
    dy = (centres[top:bottom, None] - thing.y) / thing.half
    height = thing.depth * THINGS[thing.name].relief * thing.half
    mine = owner[top:bottom, left:right] == number
    bump = (0.5 * height) * (dx * dx) + (thing.depth - height)
    np.copyto(depth[top:bottom, left:right], bump + (0.5 * height) * (dy * dy), where=mine)
    np.copyto(slope_x[top:bottom, left:right], (height / thing.half) * dx, where=mine)
    np.copyto(slope_y[top:bottom, left:right], (height / thing.half) * dy, where=mine)
