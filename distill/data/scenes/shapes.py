"""The outline and the parts of each thing.

A shape is a function `(u, v, paint) -> (distance, rgb)` over a thing's frame: `u` to the right and `v` down, both
`[h, w]` float32, the frame being `[-1, 1]`. `distance` `[h, w]` is negative inside, in frame units; `rgb` `[3, h, w]`.
Sizes agree with `extent` in `distill.data.scenes.world`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distill.data.scenes.textures import sharpen

Shape = Callable[[np.ndarray, np.ndarray, "Paint"], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Paint:
    """The colours of one instance, each `[3, 1, 1]` float32 in `[0, 255]`, and its pattern's strength and place."""

    first: np.ndarray
    second: np.ndarray
    part: np.ndarray
    pattern: Callable[[np.ndarray, np.ndarray], np.ndarray]
    offset: tuple[float, float]
    contrast: float
    pixel: float  # width of a pixel in frame units

    def surface(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The patterned surface, `[3, h, w]`."""
        share = self.pattern(u + self.offset[0], v + self.offset[1])
        share *= self.contrast
        rgb = share * (self.second - self.first)
        rgb += self.first
        return rgb

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Share of each pixel that lies inside, `[h, w]` in `[0, 1]`."""
        return sharpen(distance, -1 / self.pixel)

    def over(self, rgb: np.ndarray, distance: np.ndarray, colour: np.ndarray) -> None:
        """Paints one colour where `distance` is negative, in place."""
        rgb += self.cover(distance) * (colour - rgb)


def _disc(u: np.ndarray, v: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    return _radius(u - x, v - y) - radius


def _radius(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v)  # several times faster than np.hypot


def _rectangle(u: np.ndarray, v: np.ndarray, x: float, y: float, width: float, height: float) -> np.ndarray:
    """Half width and half height around (x, y)."""
    return np.maximum(np.abs(u - x) - width, np.abs(v - y) - height)


def _triangle(u: np.ndarray, v: np.ndarray, top: float, bottom: float, half: float) -> np.ndarray:
    """A triangle on its base, pointing up."""
    height = bottom - top
    length = math.hypot(half, height)
    return np.maximum((np.abs(u) * height - (v - top) * half) / length, v - bottom)


def ball(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    return _disc(u, v, 0, 0, 0.82), paint.surface(u, v)


def box(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    rgb = paint.surface(u, v)
    paint.over(rgb, np.abs(v + 0.42) - 0.04, rgb * 0.6)  # the edge of the lid
    return _rectangle(u, v, 0, 0, 0.80, 0.74), rgb


def _clump(u: np.ndarray, v: np.ndarray, discs: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    squared = [((u - x) ** 2 + (v - y) ** 2) - radius**2 for x, y, radius in discs]
    # gradient 2 r at the border, so this is a distance to first order
    return np.minimum(np.minimum(squared[0], squared[1]), squared[2])


def tree(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    crown = _clump(u, v, ((0.0, -0.50, 0.50), (-0.36, -0.10, 0.44), (0.36, -0.10, 0.44)))
    trunk = _rectangle(u, v, 0, 0.6, 0.15, 0.4)
    rgb = paint.surface(u, v)
    paint.over(rgb, np.maximum(trunk, -crown), paint.part)
    return np.minimum(crown, trunk), rgb


def bush(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    crown = _clump(u, v, ((0.0, -0.04, 0.58), (-0.50, 0.16, 0.50), (0.50, 0.16, 0.50)))
    return np.maximum(crown, v - 0.62), paint.surface(u, v)


def star(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    fifth = 2 * math.pi / 5
    around = np.arctan2(u, -v) * (1 / fifth)
    angle = np.abs(around - np.round(around)) * fifth  # [0, pi / 5] from the nearest point
    radius = _radius(u, v)
    # the straight edge from the point (0.96, 0) to the notch at radius 0.48
    notch = (0.50 * math.cos(fifth / 2), 0.50 * math.sin(fifth / 2))
    along = (notch[0] - 0.96, notch[1])
    length = math.hypot(*along)
    distance = ((radius * np.cos(angle) - 0.96) * along[1] - radius * np.sin(angle) * along[0]) / length
    return distance, paint.surface(u, v)


def moon(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(_disc(u, v, 0.04, 0, 0.90), -_disc(u, v, 0.66, -0.1, 0.62)), paint.surface(u, v)


def mug(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    body = _rectangle(u, v, -0.26, 0, 0.62, 0.80)
    handle = np.abs(_disc(u, v, 0.42, 0.05, 0.42)) - 0.12
    rgb = paint.surface(u, v)
    paint.over(rgb, _rectangle(u, v, -0.26, -0.68, 0.62, 0.10), paint.part)
    return np.minimum(body, handle), rgb


def umbrella(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    roof = np.maximum(_radius(u, v - 0.10) - 1.0, v - 0.10 + 0.10 * np.abs(np.sin(u * (1.5 * math.pi))))
    stick = _rectangle(u, v, 0, 0.40, 0.07, 0.52)
    rgb = paint.surface(u, v)
    paint.over(rgb, np.maximum(stick, -roof), paint.part)
    return np.minimum(roof, stick), rgb


def kite(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    side = np.abs(u)
    shoulders = (0.75 * side - 0.78 * (v + 1.0)) / math.hypot(0.75, 0.78)  # from (0, -1) to (0.78, -0.25)
    flanks = (0.87 * side + 0.78 * (v - 0.62)) / math.hypot(0.87, 0.78)  # from there to (0, 0.62)
    sail = np.maximum(shoulders, flanks)
    rgb = paint.surface(u, v)
    paint.over(rgb, np.minimum(side, np.abs(v + 0.25)) - 0.03, paint.part)
    tail = np.maximum(np.abs(u - 0.12 * np.sin(v * 12)) - 0.06, np.abs(v - 0.8) - 0.2)
    paint.over(rgb, np.maximum(tail, -sail), paint.part)
    return np.minimum(sail, tail), rgb


def tent(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    rgb = paint.surface(u, v)
    paint.over(rgb, _triangle(u, v, -0.1, 0.85, 0.32), paint.part)
    return _triangle(u, v, -0.78, 0.78, 1.0), rgb


def house(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    roof = _triangle(u, v, -0.96, -0.10, 0.92)
    walls = _rectangle(u, v, 0, 0.42, 0.72, 0.54)
    rgb = paint.surface(u, v)
    paint.over(rgb, roof, paint.part)
    openings = np.minimum(_rectangle(u, v, -0.32, 0.60, 0.17, 0.38), _rectangle(u, v, 0.34, 0.36, 0.18, 0.18))
    paint.over(rgb, openings, 0.5 * paint.part)
    return np.minimum(roof, walls), rgb


def fish(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    body = (_radius((u + 0.22) / 0.78, v / 0.58) - 1.0) * 0.6
    tail = np.maximum(np.abs(v) - 0.10 - 0.75 * (u - 0.40), np.abs(u - 0.70) - 0.30)
    rgb = paint.surface(u, v)
    paint.over(rgb, _disc(u, v, -0.62, -0.12, 0.15), paint.first * 0 + 250)
    paint.over(rgb, _disc(u, v, -0.65, -0.12, 0.08), paint.part)
    return np.minimum(body, tail), rgb


def cookie(u: np.ndarray, v: np.ndarray, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    return _disc(u, v, 0, 0, 0.82), paint.surface(u, v)


SHAPES: dict[str, Shape] = {
    "ball": ball,
    "box": box,
    "tree": tree,
    "bush": bush,
    "star": star,
    "moon": moon,
    "mug": mug,
    "umbrella": umbrella,
    "kite": kite,
    "tent": tent,
    "house": house,
    "fish": fish,
    "cookie": cookie,
}
