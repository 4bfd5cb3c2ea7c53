"""Pictures of what a model sees: PCA maps of patch features, and zero-shot segmentation beside the ground truth."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distill.evals.datasets.base import EvalDataset
from distill.evals.engine import undisturbed
from distill.evals.features import Encoder, device_of, encode, target_size, to_tensor
from distill.evals.prompts import TextCache
from distill.evals.segment import argmax_raised, cosine

IGNORE_COLOUR = (128, 128, 128)
GOLDEN = 0.6180339887498949  # hues this far apart stay apart however many there are


@dataclass
class Panel:
    """One image with its segmentations, uint8 `[H, W, 3]` each, all of the image's size."""

    image: np.ndarray
    truth: np.ndarray
    final: np.ndarray  # zero-shot segmentation with final tokens
    value: np.ndarray  # zero-shot segmentation with the value path
    classes: list[int]  # that occur in any of the three, for the legend


def pca_maps(
    model: Encoder, images: Sequence[Image.Image], size: int, *, values: bool = False, smooth: bool = False
) -> list[np.ndarray]:
    """One picture per image, uint8 `[H, W, 3]` of its size: three principal components of the patch features as RGB.

    The components are those of all patches of all `images` together, so colours compare between the images of one
    call, not between models. The sign of each makes its largest loading positive, so the result is deterministic; its
    2nd to 98th percentile fills the range. `size`: evaluation size, as in `open_dataset`. `values`: features of the
    value path. `smooth`: bilinear instead of one square a patch.
    """
    with undisturbed(model):
        grids = [_features(model, image, size)[2 if values else 1][0].cpu() for image in images]  # each [h, w, D]
    tokens = torch.cat([grid.flatten(0, 1) for grid in grids]).double()  # [P, D]
    mean, axes = principal_axes(tokens, 3)
    scores = (tokens - mean) @ axes  # [P, 3]
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    pictures = []
    for image, grid in zip(images, grids):
        colour = ((grid.double() - mean) @ axes - low) / (high - low).clamp(min=1e-12)  # [h, w, 3]
        pixels = (colour.clamp(0, 1) * 255).round().byte().numpy()
        resample = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        pictures.append(np.array(Image.fromarray(pixels).resize(image.size, resample)))
    return pictures


def principal_axes(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and the first `count` principal axes `[D, count]` of tokens `[P, D]`; zero columns where D is smaller.

    The sign of an axis is such that its entry of largest magnitude is positive.
    """
    mean = tokens.mean(0)
    centred = tokens - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = vectors.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))  # [1, count]
    return mean, F.pad(axes * largest.sign(), (0, count - axes.shape[1]))


def segmentation_panels(
    model: Encoder, dataset: EvalDataset, indices: Sequence[int], *, prompts: str | None = None, alpha: float = 0.6
) -> list[Panel]:
    """The chosen images of `dataset` under their ground truth and zero-shot segmentation, `alpha` being colour's share.

    Whole images, the procedure of `distill.evals.zeroshot_seg`. Colours: `palette(len(dataset.class_names))`; pixels
    marked ignore are grey in the truth.
    """
    colours = palette(len(dataset.class_names))
    panels = []
    with undisturbed(model):
        classes = TextCache(model).classes(dataset.prompt_names, prompts or dataset.prompts)
        for index in indices:
            example = dataset.load(index, masks=True)
            assert example.mask is not None
            _, final, value = _features(model, example.image, dataset.size)
            shape = example.mask.shape
            labels = [argmax_raised(cosine(patches, classes), shape, 32)[0].cpu().numpy() for patches in (final, value)]
            pixels = np.array(example.image)
            truth, *found = (overlay(pixels, mask, colours, alpha) for mask in (example.mask, *labels))
            seen = np.unique(np.concatenate([example.mask.ravel(), *(label.ravel() for label in labels)]))
            named = [int(c) for c in seen if c < len(colours)]
            panels.append(Panel(pixels, truth, found[0], found[1], named))
    return panels


def _features(model: Encoder, image: Image.Image, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """CLS `[1, C, D]`, final patches and value-path patches `[1, h, w, D]` of one image."""
    height, width = target_size(image.height, image.width, size, model.image.patch, "short")
    pixels = to_tensor(image.convert("RGB"), height, width)[None].to(device_of(model))
    cls, final, value = encode(model, pixels, values=True)
    assert final is not None and value is not None
    return cls, final, value


def palette(count: int) -> np.ndarray:
    """`count` colours, uint8 `[count, 3]`: hues a golden ratio apart, in turn light, strong and dark."""
    tones = ((0.65, 0.95), (0.9, 0.75), (0.45, 0.6))  # saturation, value
    rgb = [colorsys.hsv_to_rgb((at * GOLDEN) % 1, *tones[at % len(tones)]) for at in range(count)]
    return (np.array(rgb).reshape(count, 3) * 255).round().astype(np.uint8)


def overlay(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """`image` uint8 `[H, W, 3]` under the colours of `labels` `[H, W]`; labels beyond the palette are grey."""
    table = np.concatenate([colours, [IGNORE_COLOUR]])
    colour = table[np.minimum(labels.astype(np.int64), len(colours))]
    return (image * (1 - alpha) + colour * alpha).round().astype(np.uint8)


def legend(names: Sequence[str], colours: np.ndarray, width: int = 320, row: int = 18) -> Image.Image:
    """A picture of the class names beside their colours, in as many rows as they need; `width` and `row` in pixels."""
    font = ImageFont.load_default(size=row * 0.66)
    places, x, y = [], 0, 0
    for name in names:
        step = row + 10 + int(font.getlength(name))
        if x and x + step > width:
            x, y = 0, y + row
        places.append((x, y))
        x += step
    picture = Image.new("RGB", (width, y + row), "white")
    draw = ImageDraw.Draw(picture)
    for name, colour, (x, y) in zip(names, colours, places):
        draw.rectangle((x + 2, y + 3, x + row - 5, y + row - 4), fill=tuple(int(c) for c in colour), outline="black")
        draw.text((x + row, y + row / 2), name, fill="black", font=font, anchor="lm")
    return picture
