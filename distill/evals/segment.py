"""From patch features to a label for each pixel, without a full-resolution volume of classes.

Whole images: a few at a time (`together`); classes that cannot win anywhere are left out (`contenders`), the others are
raised a few at a time with a running maximum. Sliding windows: a strip of rows at a time, all classes of it. Both give
the labels of the full volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SLACK = 1e-5  # relative: far above what rounding may add to a bilinear mean
STRIP = 1 << 22  # values of a strip, 4 bytes each: what a processor's cache holds
RAISED = 1 << 26  # values raised at a time, 4 bytes each: a quarter of a gigabyte
Box = tuple[int, int, int, int]  # top, left, bottom, right


def cosine(patches: Tensor, classes: Tensor) -> Tensor:
    """Patches `[B, h, w, D]` (any length) and unit class vectors `[K, D]` -> cosines `[B, K, h, w]`."""
    return (F.normalize(patches, dim=-1) @ classes.T.to(patches.device)).permute(0, 3, 1, 2)


def raised(scores: Tensor, size: Sequence[int]) -> Tensor:
    """`[B, K, h, w]` -> `[B, K, *size]`, bilinear, align_corners=False."""
    return F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)


def contenders(scores: Tensor) -> Tensor:
    """Which classes of `[B, K, h, w]` can have the highest raised score at some pixel: indices, ascending.

    A raised score lies between the lowest and the highest of two by two neighbouring patches. A class whose highest is
    below some other's lowest, in every such square of every image, wins nowhere.
    """
    around = F.pad(scores, (1, 1, 1, 1), mode="replicate")
    highest = F.max_pool2d(around, 2, stride=1)  # [B, K, h + 1, w + 1]
    lowest = -F.max_pool2d(-around, 2, stride=1)
    bar = lowest.amax(1, keepdim=True) - SLACK * scores.abs().amax()
    return (highest >= bar).any(dim=3).any(dim=2).any(dim=0).nonzero()[:, 0]


def best_of(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Maximum over dim 1 of the concatenated `parts` `[B, k, H, W]` and where it is, each `[B, H, W]`.

    One part is in memory at a time; of equal maxima the first wins.
    """
    best: Tensor | None = None
    offset = 0
    for part in parts:
        value, at = part.max(1)
        at += offset
        offset += part.shape[1]
        del part  # before the next one is made
        if best is None:
            best, place = value, at
        else:
            better = value > best
            best = torch.where(better, value, best)
            place = torch.where(better, at, place)
    assert best is not None
    return best, place


def best_raised(scores: Tensor, size: Sequence[int], chunk: int) -> tuple[Tensor, Tensor]:
    """Maximum and argmax of `raised(scores, size)` over its classes, each `[B, *size]`.

    `chunk` classes are raised at a time, fewer where they would be more than RAISED values (one, at the least).
    """
    chunk = max(1, min(chunk, RAISED // (len(scores) * size[0] * size[1])))
    kept = contenders(scores)
    value, at = best_of(raised(part, size) for part in scores[:, kept].split(chunk, dim=1))
    return value, kept[at]


def argmax_raised(scores: Tensor, size: Sequence[int], chunk: int) -> Tensor:
    """Labels `[B, *size]` int64: the argmax of `raised(scores, size)` without its full volume."""
    return best_raised(scores, size, chunk)[1]


def together(images: list[int], size: Sequence[int], chunk: int) -> list[list[int]]:
    """`images`, as many at a time as can be raised to `size`, `chunk` classes of each, within RAISED values."""
    most = max(1, RAISED // (chunk * size[0] * size[1]))
    return [images[at : at + most] for at in range(0, len(images), most)]


def windows(image: Sequence[int], window: int, stride: int) -> list[Box]:
    """Boxes covering an image (height, width), row by row; the last ones are moved back to end at its border.

    An image smaller than the window along a side gets one window of its own length there.
    """
    tops, lefts = (_starts(length, window, stride) for length in image)
    height, width = (min(window, length) for length in image)
    return [(top, left, top + height, left + width) for top in tops for left in lefts]


def _starts(length: int, window: int, stride: int) -> list[int]:
    steps = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(step * stride, length - window), 0) for step in range(steps)]


def best_slide(
    scores: Tensor, boxes: Sequence[Box], image: Sequence[int], size: Sequence[int], strip: int = STRIP
) -> tuple[Tensor, Tensor]:
    """Maximum and argmax, each `[*size]`, of the class shares of an image seen through windows.

    scores `[n, K, h, w]` of the windows at `boxes` in an image of `image` (height, width) pixels. In each window scores
    are raised to its pixels and go through a softmax over classes; shares are averaged where windows overlap and then
    raised to `size`. The volume `[K, H, W]` is made a strip of rows at a time, of about `strip` values.
    """
    rows = max(1, strip // (scores.shape[1] * max(image[1], size[1])))
    values, places = zip(*(_strip(scores, boxes, image, size, start, rows) for start in range(0, size[0], rows)))
    return torch.cat(values), torch.cat(places)


def _strip(
    scores: Tensor, boxes: Sequence[Box], image: Sequence[int], size: Sequence[int], start: int, rows: int
) -> tuple[Tensor, Tensor]:
    """Maximum and argmax `[rows, size[1]]` of the output's rows from `start`."""
    stop = min(start + rows, size[0])
    above, below, weight = _row_sources(image[0], size[0], start, stop, scores)
    first, last = int(above[0]), int(below[-1]) + 1
    shares = scores.new_zeros(scores.shape[1], last - first, image[1])  # [K, r, W]
    cover = scores.new_zeros(last - first, image[1])
    for score, (top, left, bottom, right) in zip(scores, boxes):
        low, high = max(top, first), min(bottom, last)
        if low < high:
            part = _raised_rows(score, (bottom - top, right - left), low - top, high - top).softmax(0)
            shares[:, low - first : high - first, left:right] += part
            cover[low - first : high - first, left:right] += 1
    shares /= cover
    if (image[0], image[1]) != (size[0], size[1]):
        shares = _mix_rows(shares, above - first, below - first, weight)
        shares = raised(shares[None], (stop - start, size[1]))[0]
    return shares.max(0)


def _raised_rows(score: Tensor, size: tuple[int, int], start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of `raised(score, size)`: `[K, h, w]` -> `[K, stop - start, size[1]]`."""
    mixed = _mix_rows(score, *_row_sources(score.shape[1], size[0], start, stop, score))
    return raised(mixed[None], (stop - start, size[1]))[0]  # the rows are there: only columns are raised


def _mix_rows(values: Tensor, above: Tensor, below: Tensor, weight: Tensor) -> Tensor:
    """`[K, h, w]` -> `[K, r, w]`: rows `above` and `below`, the latter by `weight` `[r]`."""
    share = weight[:, None]
    return values[:, above] * (1 - share) + values[:, below] * share


def _row_sources(source: int, target: int, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which two of `source` rows the rows `start` to `stop` of `target` mix, and the share of the second."""
    at = torch.arange(start, stop, device=like.device, dtype=torch.float64)
    at = ((at + 0.5) * source / target - 0.5).clamp(min=0)
    above = at.floor().long().clamp(max=source - 1)
    return above, (above + 1).clamp(max=source - 1), (at - above).to(like.dtype)


def background_of(names: Sequence[str]) -> int | None:
    """The class called "background", if there is one."""
    return names.index("background") if "background" in names else None
