"""From one JPEG to one global crop of 224 px and six local ones of 98 px, and procedural scenes.

The reference is the usual pipeline: Pillow decodes, then seven times torchvision's RandomResizedCrop (bicubic, which
Pillow antialiases), RandomHorizontalFlip and ToTensor. Ours draws the crops first, decodes at the smallest scale that
enlarges none, cuts before resizing and stays at 8 bits; its distribution of crops is the same. Photographs are made up
(`distill/bench/photos.py`); the more bytes a pixel, the more of the time is Huffman decoding, which nobody saves. One
CPU thread, images per second of CPU time.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from distill.bench.measure import interleave, use_threads
from distill.bench.photos import jpeg, photo
from distill.bench.rows import Row, more, not_measured, plain
from distill.config.schema import ScenesConfig, ViewsConfig
from distill.data.decode import Picture
from distill.data.decoders import PILLOW, SIMPLEJPEG, choose_decoder
from distill.data.sample import Sample
from distill.data.scenes import SceneSource
from distill.views.crops import apply_crops, draw_crops

FULL = (((375, 500), 90), ((1500, 2000), 75), ((1500, 2000), 85), ((1500, 2000), 92))  # (height, width), JPEG quality
QUICK = (((75, 100), 90),)
VIEWS = ViewsConfig(global_size=224, local_size=98, locals=6)
SCENE_VIEWS = {64: ViewsConfig(global_size=48, local_size=24, locals=1), 128: ViewsConfig(112, 48, 6)}


def measure(quick: bool) -> list[Row]:
    rows = []
    with use_threads(1):
        for size, quality in QUICK if quick else FULL:
            files = [jpeg(photo(*size, seed), quality) for seed in range(1 if quick else 3)]
            rows += compare(files, f"{size[1]} x {size[0]} px", rounds=1 if quick else 7)
        for side, views in SCENE_VIEWS.items():
            rows += scenes(side, views, 4 if quick else 200)
    return rows


def compare(files: Sequence[bytes], what: str, rounds: int) -> list[Row]:
    """Both of our decoders against the reference, on the JPEGs `files`."""
    density = sum(map(len, files)) / sum(np.prod(Image.open(io.BytesIO(data)).size) for data in files)
    what = f"{what}, {density:.2f} bytes a pixel"
    fast = choose_decoder("auto") == SIMPLEJPEG
    ways = {"reference": usual(files), PILLOW: ours(files, PILLOW)} | (
        {SIMPLEJPEG: ours(files, SIMPLEJPEG)} if fast else {}
    )
    rates = {name: len(files) / timing.cpu for name, timing in interleave(ways, rounds).items()}
    unit = "images/s of CPU"
    rows = [more(f"{what}: {name}", rates[name], rates["reference"], unit) for name in ways if name != "reference"]
    return rows if fast else [*rows, not_measured(f"{what}: {SIMPLEJPEG}", unit, "simplejpeg is not installed")]


def usual(files: Sequence[bytes]) -> Callable[[], object]:
    """A call that makes the crops of every file as most code does."""

    def crop(side: int, scale: list[float]) -> transforms.Compose:
        resized = transforms.RandomResizedCrop(side, tuple(scale), interpolation=InterpolationMode.BICUBIC)
        return transforms.Compose([resized, transforms.RandomHorizontalFlip(VIEWS.flip), transforms.ToTensor()])

    global_ = crop(VIEWS.global_size, VIEWS.global_scale)
    local = crop(VIEWS.local_size, VIEWS.local_scale)

    def make(data: bytes) -> tuple[object, list[object]]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return global_(image), [local(image) for _ in range(VIEWS.locals)]

    return lambda: [make(data) for data in files]


def ours(files: Sequence[bytes], decoder: str) -> Callable[[], object]:
    """A call that makes the crops of every file as the loader does, other crops each time."""
    seeds = count()

    def make(data: bytes) -> tuple[np.ndarray, np.ndarray]:
        picture = Picture(Sample("", "", data), decoder)
        crops = draw_crops(picture.size, VIEWS, np.random.default_rng(next(seeds)))
        return apply_crops(picture.decode(crops.least_scale()), crops)

    return lambda: [make(data) for data in files]


def scenes(side: int, views: ViewsConfig, number: int) -> list[Row]:
    """Scenes of `side` px drawn for the first time, alone and with their crops."""
    source = SceneSource(ScenesConfig(size=side, count=1 << 30, cache=False), dense=False)
    indices = count()

    def alone() -> None:
        for index in _next(indices, number):
            source[index]

    def cropped() -> None:
        for index in _next(indices, number):
            pixels = source[index].image
            assert isinstance(pixels, np.ndarray)
            apply_crops(pixels, draw_crops(pixels.shape[:2], views, np.random.default_rng(index)))

    times = interleave({"alone": alone, "cropped": cropped}, rounds=3)
    crops = f"with crops of {views.global_size} and {views.locals} x {views.local_size} px"
    return [
        plain(f"scene of {side} px {what}", number / times[name].cpu, "images/s of CPU")
        for name, what in (("alone", "alone"), ("cropped", crops))
    ]


def _next(indices: count[int], number: int) -> list[int]:
    return [next(indices) for _ in range(number)]
