"""How far pixels alone go: ridge regression to the class at a patch's centre, without any training of features.

The gap between one patch and its surroundings says how much of a class is context; the gap between these numbers and
a trained encoder's linear probe says what there is to learn. Two sets of features, both for 8 x 8 patches of 64 px
scenes: raw pixels, and 256 random rectified projections of them (a random layer sees textures, raw pixels hardly do).
"""

from __future__ import annotations

import numpy as np

from distill.config.schema import ScenesConfig
from distill.data.scenes.source import SceneSource
from distill.data.scenes.world import World

SIZE, PATCH = 64, 8
GRID = SIZE // PATCH
RANDOM_FEATURES = 256


def patches(split: str, images: int, world: World | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [-0.5, 0.5] `[n, 8, 8, 192]` float32 and classes at the patch centres `[n, 8, 8]` of a split."""
    source = SceneSource(ScenesConfig(size=SIZE, count=images, cache=False), split, world=world, dense=False)
    pixels, labels = [], []
    for index in range(images):
        sample = source[index]
        assert isinstance(sample.image, np.ndarray)
        assert sample.mask is not None
        tiles = sample.image.reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 1, 3, 4)
        pixels.append(tiles.reshape(GRID, GRID, -1))
        labels.append(sample.mask[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH])
    return np.stack(pixels).astype(np.float32) / 255 - 0.5, np.stack(labels)


def random_layer(pixels: np.ndarray) -> np.ndarray:
    """256 random rectified projections of each patch, `[..., 256]` float32; its mean colour has less weight."""
    rng = np.random.RandomState(0)
    mean = pixels.reshape(*pixels.shape[:-1], -1, 3).mean(-2, keepdims=True)
    centred = (pixels.reshape(*pixels.shape[:-1], -1, 3) - 0.6 * mean).reshape(pixels.shape)
    weights = rng.randn(pixels.shape[-1], RANDOM_FEATURES).astype(np.float32)
    return np.maximum(centred @ weights + rng.randn(RANDOM_FEATURES).astype(np.float32), 0)


def neighbourhood(features: np.ndarray) -> np.ndarray:
    """Each patch's features beside those of its 8 neighbours, `[n, 8, 8, 9 d]`; the border repeats."""
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifts = [padded[:, y : y + GRID, x : x + GRID] for y in range(3) for x in range(3)]
    return np.concatenate(shifts, -1)


def ridge_accuracy(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, strength: float = 1e-4
) -> float:
    """Share of `test` right after ridge regression on one-hot labels; `strength` is relative to the mean variance."""
    mean = train.reshape(-1, train.shape[-1]).mean(0)
    inputs = train.reshape(-1, train.shape[-1]) - mean
    targets = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels.ravel()]
    gram = inputs.T @ inputs
    gram[np.diag_indices_from(gram)] += strength * np.trace(gram) / len(gram) + 1e-6
    weights = np.linalg.solve(gram, inputs.T @ (targets - targets.mean(0)))
    scores = (test.reshape(-1, test.shape[-1]) - mean) @ weights + targets.mean(0)
    return float((scores.argmax(1) == truth.ravel()).mean())


def pixel_baselines(images: int = 1024, world: World | None = None) -> dict[str, float]:
    """Accuracy of each set of features from one patch and from 3 x 3 patches, tested on a quarter as many images."""
    train, labels = patches("train", images, world)
    test, truth = patches("test", max(images // 4, 1), world)
    results = {}
    for name, layer in (("raw pixels", np.asarray), ("random layer", random_layer)):
        one, one_test = layer(train), layer(test)
        results[f"{name}, 1 x 1 patch"] = ridge_accuracy(one, labels, one_test, truth)
        around, around_test = neighbourhood(one), neighbourhood(one_test)
        results[f"{name}, 3 x 3 patches"] = ridge_accuracy(around, labels, around_test, truth)
    return results
