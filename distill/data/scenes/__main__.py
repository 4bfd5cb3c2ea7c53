"""Look at the scenes and measure them: `python -m distill.data.scenes --sheet FILE.png | --rate | --pixels`."""

from __future__ import annotations

import argparse
import time

import numpy as np
from PIL import Image

from distill.config.schema import ScenesConfig
from distill.data.scenes import SceneSource
from distill.data.scenes.baselines import pixel_baselines

SIZES = (32, 64, 128, 224, 448)


def rate(size: int, seconds: float = 2.0) -> float:
    """Images a second of processor time, with mask, depth, normals and captions, nothing cached."""
    source = SceneSource(ScenesConfig(size=size, count=10**9, cache=False))
    source[0]
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        count += 1
        source[count]
    return count / (time.process_time() - start)


def sheet(size: int, rows: int, columns: int, zoom: int = 2) -> Image.Image:
    """Scenes beside their masks, depth (near is bright) and normals."""
    source = SceneSource(ScenesConfig(size=size, count=rows * columns, cache=False))
    palette = np.random.RandomState(4).randint(40, 255, (len(source.classes), 3)).astype(np.uint8)
    strips = []
    for index in range(len(source)):
        sample = source[index]
        assert sample.mask is not None and sample.depth is not None and sample.normals is not None
        near = (255 * np.minimum(0.7 / sample.depth, 1)).astype(np.uint8)
        views = [sample.image, palette[sample.mask], np.repeat(near[..., None], 3, 2)]
        views.append((127.5 * (sample.normals + 1)).astype(np.uint8))
        strips.append(np.concatenate([np.pad(view, ((1, 1), (1, 1), (0, 0))) for view in views], 1))
    grid = [np.concatenate(strips[row * columns : (row + 1) * columns], 1) for row in range(rows)]
    picture = Image.fromarray(np.concatenate(grid, 0))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distill.data.scenes", description="Look at the scenes, measure them."
    )
    parser.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet: image, mask, depth, normals")
    parser.add_argument("--size", type=int, default=64, help="side of the sheet's scenes in pixels (default: 64)")
    parser.add_argument("--rate", action="store_true", help="print images a second for each size")
    parser.add_argument("--pixels", action="store_true", help="print what linear probes on raw pixels reach")
    args = parser.parse_args()
    if not (args.sheet or args.rate or args.pixels):
        parser.print_help()
    if args.sheet:
        sheet(args.size, 8, 3).save(args.sheet)
        for text in SceneSource(ScenesConfig(size=32, count=3)).caption_corpus(3):
            print(text)
    if args.rate:
        for size in SIZES:
            print(f"{size:4d} px {rate(size):8.0f} images/s")
    if args.pixels:
        for name, accuracy in pixel_baselines().items():
            print(f"{name:28s} {100 * accuracy:5.1f} %")


if __name__ == "__main__":
    main()
