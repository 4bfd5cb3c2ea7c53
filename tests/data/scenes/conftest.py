from __future__ import annotations

from collections.abc import Callable

import pytest

from distill.config.schema import ScenesConfig
from distill.data.sample import Sample
from distill.data.scenes import SceneSource, World
from distill.data.scenes.layout import Scene, draw_scene


@pytest.fixture(scope="session")
def make_source() -> Callable[..., SceneSource]:
    def make(split: str = "train", *, size: int = 64, count: int = 4096, seed: int = 0, cache: bool = False, **options):
        return SceneSource(ScenesConfig(size=size, count=count, seed=seed, cache=cache), split, **options)

    return make


@pytest.fixture(scope="session")
def drawn(make_source: Callable[..., SceneSource]) -> list[tuple[Scene, Sample]]:
    """The first 300 training scenes: layout and sample."""
    source = make_source()
    return [(draw_scene(World(), 0, "train", index), source[index]) for index in range(300)]
