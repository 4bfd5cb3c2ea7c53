"""Scenes as a data source: index in, sample out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.config.schema import ScenesConfig
from distill.data.sample import Sample
from distill.data.scenes.captions import captions_of
from distill.data.scenes.layout import Scene, draw_scene
from distill.data.scenes.render import class_mask, render_geometry, render_image
from distill.data.scenes.world import SCENE_CLASSES, World
from distill.errors import UserError, unknown

SPLITS = ("train", "test")
MIN_SIZE, MAX_SIZE = 32, 448


@dataclass(frozen=True, slots=True)
class _Picture:
    """What is kept of a scene: everything that is slow to make."""

    scene: Scene
    captions: dict[str, list[str]]
    image: np.ndarray  # [H, W, 3] uint8
    owner: np.ndarray  # [H, W] uint8, see `render`


class SceneSource:
    """`cfg.count` scenes of one split, rendered when asked for; a sample depends on (seed, split, index) alone.

    Samples have image `[H, W, 3]` uint8, mask `[H, W]` uint8 (indices into `classes`, every pixel labelled), captions
    `web`, `synthetic` and `detailed` (one text each) and, when `dense`, depth `[H, W]` float32 in image sides and
    normals `[H, W, 3]` float32 (right, up, towards the viewer). The splits are disjoint random streams.

    With `cfg.cache` scenes stay in memory, 4 bytes a pixel; depth and normals, when asked for, are worked out again.

    Raises:
        UserError: unknown split, or size, count or seed out of range.
    """

    def __init__(
        self, cfg: ScenesConfig, split: str = "train", *, world: World | None = None, dense: bool = True
    ) -> None:
        if split not in SPLITS:
            raise unknown("split of the scenes", split, SPLITS)
        if not MIN_SIZE <= cfg.size <= MAX_SIZE:
            raise UserError(
                f"data.scenes.size is {cfg.size}. Allowed: {MIN_SIZE} to {MAX_SIZE} pixels. Set data.scenes.size=64."
            )
        if cfg.count < 1:
            raise UserError(f"data.scenes.count is {cfg.count}. Allowed: 1 or more. Set data.scenes.count=8192.")
        if cfg.seed < 0:
            raise UserError(f"data.scenes.seed is {cfg.seed}. Allowed: 0 or more. Set data.scenes.seed=0.")
        self.cfg, self.split, self.dense = cfg, split, dense
        self.world = world if world is not None else World()
        self.classes: list[str] = list(SCENE_CLASSES)
        self._cache: dict[int, _Picture] = {}

    def __len__(self) -> int:
        return self.cfg.count

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`, `0 <= index < len(self)`; IndexError outside. Its arrays are the caller's own."""
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        picture = self._kept(index)
        sample = Sample(
            key=f"{self.cfg.seed}-{self.split}-{index}",
            shard="scenes",
            image=picture.image.copy(),
            captions={field: list(texts) for field, texts in picture.captions.items()},
            mask=class_mask(picture.scene, picture.owner),
        )
        if self.dense:
            sample.depth, sample.normals = render_geometry(picture.scene, picture.owner)
        return sample

    def geometry(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Depth and normals of the scene at `index`, as in a sample when `dense`."""
        picture = self._kept(index)
        return render_geometry(picture.scene, picture.owner)

    def _kept(self, index: int) -> _Picture:
        """From the cache, or drawn."""
        picture = self._cache.get(index) or self._picture(index)
        if self.cfg.cache:
            self._cache[index] = picture
        return picture

    def _picture(self, index: int) -> _Picture:
        scene = draw_scene(self.world, self.cfg.seed, self.split, index)
        image, owner = render_image(scene, self.world, self.cfg.size)
        return _Picture(scene, captions_of(scene, self.world, self.cfg.seed, self.split, index), image, owner)

    def caption_corpus(self, count: int) -> list[str]:
        """All captions of the first `count` scenes, in order, without drawing a pixel."""
        return caption_corpus(count, seed=self.cfg.seed, split=self.split, world=self.world)


def caption_corpus(count: int, *, seed: int = 0, split: str = "train", world: World | None = None) -> list[str]:
    """All captions (web, synthetic, detailed) of scenes `0 .. count - 1`, in order, without drawing a pixel."""
    world = world if world is not None else World()
    texts = []
    for index in range(count):
        scene = draw_scene(world, seed, split, index)
        for field in captions_of(scene, world, seed, split, index).values():
            texts.extend(field)
    return texts
