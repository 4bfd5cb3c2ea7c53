"""Scenes: a small procedural world with images, labels, geometry and captions at three granularities.

See `world` for what it holds and its knobs of difficulty. `python -m distill.data.scenes --help` prints pictures,
rates and the pixel baselines.
"""

from distill.data.scenes.source import SPLITS, SceneSource, caption_corpus
from distill.data.scenes.world import REGIONS, SCENE_CLASSES, THINGS, World

__all__ = ["REGIONS", "SCENE_CLASSES", "SPLITS", "THINGS", "SceneSource", "World", "caption_corpus"]
