"""Zero-shot segmentation by the value path with ViT-B/14: images at 448 px, 150 classes, masks of 512 x 683.

Ours is the task's own path (`distill.evals.zeroshot_seg`, `paths=value`) from pixels to labels. The reference is the
published notebook's procedure written plainly: one image and one window at a time, attention as a softmax of a product,
the whole volume of classes raised to the mask's size. Both run the same random weights; text features are given. The
last rows say where the reference's time goes and on how many pixels the labels agree (at near ties the last bits of
float32 decide). One CPU thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.bench.measure import Timing, interleave, use_threads
from distill.bench.rows import Row, more, plain
from distill.evals.features import encode, encode_parts
from distill.evals.packed import packed_linears
from distill.evals.segment import best_raised, best_slide, cosine, windows
from distill.models.vision import VisionTower
from students.architectures import parse_arch

FULL = {"arch": "B/14", "depth": 12, "side": 448, "image": (448, 597), "mask": (512, 683), "classes": 150, "rounds": 2}
QUICK = {"arch": "tiny/14", "depth": 2, "side": 56, "image": (56, 75), "mask": (64, 85), "classes": 7, "rounds": 1}
STRIDE = 0.75  # of the window


class Encoder:
    """What evaluation asks of a model, with an image tower only."""

    def __init__(self, tower: VisionTower):
        self.image = tower

    def encode_image(self, images: Tensor, values: bool = False) -> tuple[Tensor, Tensor]:
        cls, patches = self.image(images, values=values)
        return cls, patches.unflatten(1, self.image.grid(*images.shape[-2:]))

    def encode_text(self, texts: list[str]) -> Tensor:
        raise NotImplementedError("text features are given")


@torch.no_grad()
def ours_whole(model: Encoder, image: Tensor, texts: Tensor, mask: tuple[int, int]) -> Tensor:
    """Labels `[H, W]` of an image `[3, h, w]`."""
    _, _, values = encode(model, image[None], values=True, final=False)
    assert values is not None
    return best_raised(cosine(values, texts), mask, 32)[1][0]


@torch.no_grad()
def ours_slide(model: Encoder, image: Tensor, texts: Tensor, mask: tuple[int, int], side: int) -> Tensor:
    boxes = windows(image.shape[1:], side, int(side * STRIDE))
    crops = torch.stack([image[:, top:bottom, left:right] for top, left, bottom, right in boxes])
    _, _, values = encode_parts(model, crops, values=True, final=False)
    assert values is not None
    return best_slide(cosine(values, texts), boxes, image.shape[1:], mask)[1]


def plain_features(tower: VisionTower, image: Tensor) -> Tensor:
    """Value-path patches `[rows, columns, D]` of `[3, h, w]`, block by block."""
    patch, trunk = tower.patch, tower.trunk
    blocks: list[Any] = list(trunk.blocks)
    size = [-(-side // patch) * patch for side in image.shape[1:]]
    pixels = F.interpolate(image[None], size=size, mode="bicubic", align_corners=False)
    tokens = tower.embed(pixels, None)
    prefix = [token for token in (trunk.cls_token, trunk.reg_token) if token is not None]
    x = torch.cat([*prefix, tokens], dim=1)
    for block in blocks[:-1]:
        x = x + block.attn.proj(plain_attention(block.attn, block.norm1(x)))
        x = x + block.mlp(block.norm2(x))
    block = blocks[-1]
    batch, count, width = x.shape
    value = block.attn.qkv(block.norm1(x)).reshape(batch, count, 3, width)[:, :, 2]
    x = x + block.attn.proj(value)
    x = trunk.norm(x + block.mlp(block.norm2(x)))
    return x[0, len(prefix) :].reshape(size[0] // patch, size[1] // patch, width)


def plain_attention(attention: Any, x: Tensor) -> Tensor:
    batch, count, width = x.shape
    qkv = attention.qkv(x).reshape(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv[0] * attention.scale, qkv[1], qkv[2]
    weights = (query @ key.transpose(-2, -1)).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).reshape(batch, count, width)


def plain_cosines(tower: VisionTower, image: Tensor, texts: Tensor) -> Tensor:
    features = F.normalize(plain_features(tower, image), dim=-1)
    return torch.einsum("kd,hwd->khw", texts, features)


def bilinear(scores: Tensor, size: Any) -> Tensor:
    return F.interpolate(scores[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def plain_whole(tower: VisionTower, image: Tensor, texts: Tensor, mask: tuple[int, int]) -> Tensor:
    return bilinear(plain_cosines(tower, image, texts), mask).argmax(0)


@torch.no_grad()
def plain_slide(tower: VisionTower, image: Tensor, texts: Tensor, mask: tuple[int, int], side: int) -> Tensor:
    _, height, width = image.shape
    total, cover = torch.zeros(len(texts), height, width), torch.zeros(height, width)
    for top, left, bottom, right in windows((height, width), side, int(side * STRIDE)):
        window = image[:, top:bottom, left:right]
        cosines = bilinear(plain_cosines(tower, window, texts), window.shape[1:])
        total[:, top:bottom, left:right] += cosines.softmax(dim=0)
        cover[top:bottom, left:right] += 1
    return bilinear(total / cover, mask).argmax(0)


def measure(quick: bool) -> list[Row]:
    size: dict[str, Any] = QUICK if quick else FULL
    torch.manual_seed(0)
    tower = VisionTower(parse_arch(size["arch"]), depth=size["depth"]).eval()
    image = torch.rand(3, *size["image"])
    texts = F.normalize(torch.randn(size["classes"], tower.width), dim=-1)
    mask, side, model = size["mask"], size["side"], Encoder(copy.deepcopy(tower))
    calls: dict[str, Callable[[], Tensor]] = {
        "ours whole": partial(ours_whole, model, image, texts, mask),
        "plain whole": partial(plain_whole, tower, image, texts, mask),
        "ours slide": partial(ours_slide, model, image, texts, mask, side),
        "plain slide": partial(plain_slide, tower, image, texts, mask, side),
        "plain encoder": torch.no_grad()(partial(plain_features, tower, image)),
    }
    with use_threads(1), packed_linears(model.image):  # as an evaluation does for its whole length
        times = interleave(calls, rounds=size["rounds"])
        labels = {name: calls[name]() for name in calls if name != "plain encoder"}
    return [row for mode in ("whole", "slide") for row in _rows(mode, times, labels)] + [
        plain("share of the reference's time in the encoder, whole", _share(times), "", "CPU time")
    ]


def _rows(mode: str, times: dict[str, Timing], labels: dict[str, Tensor]) -> list[Row]:
    ours, reference = times[f"ours {mode}"], times[f"plain {mode}"]
    agree = float((labels[f"ours {mode}"] == labels[f"plain {mode}"]).double().mean())
    return [
        more(f"{mode} images", 1 / ours.wall, 1 / reference.wall, "images/s"),
        more(f"{mode} images", 1 / ours.cpu, 1 / reference.cpu, "images/s of CPU"),
        plain(f"{mode} images: pixels with equal labels", agree, "share"),
    ]


def _share(times: dict[str, Timing]) -> float:
    return times["plain encoder"].cpu / times["plain whole"].cpu
