"""Zero-shot segmentation: each pixel gets the class whose text is nearest to its patch.

Protocol (TIPSv2, arXiv 2604.12012, appendix; Table 5 whole images, Table 8 sliding windows):

- Images: short side to `size`, aspect kept, sides rounded up to the patch (`distill.evals.features`); [0, 1].
- Patches, unit length: final tokens and the value path of the last block, both always (`..._final`, `..._value`).
- Text: every class name in every prompt of the set, unit length, averaged, unit length again. Prompt sets: `tcl` (the
  nine of TCL, the paper's), `photo`, `plain` (the name alone; what the scenes use).
- whole: cosine of patch and class, raised bilinearly (align_corners=False) to the mask's size, argmax. No temperature.
- slide: windows of `window` pixels every `stride` (the paper's notebook: 448 and 336; TCL: 448 and 224), the last ones
  moved back inside. In each: cosine raised bilinearly to the window, softmax over classes without temperature. Summed
  over windows, divided by how many cover a pixel, raised to the mask's size, argmax.
- Score: one confusion matrix over all pixels but those marked ignore; mean IoU over classes with a non-empty union;
  pixel accuracy. `miou_chance` is what uniformly drawn labels are expected to get.

Memory: class scores are raised `chunk` classes at a time with a running argmax; labels are those of the full volume.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError
from distill.evals.datasets.base import MASKS, EvalDataset
from distill.evals.engine import run_task
from distill.evals.features import Batch, Encoder, Needs, encode, round_up
from distill.evals.metrics import accuracy, chance_miou, class_iou, confusion, mean_iou
from distill.evals.prompts import templates
from distill.evals.results import TaskResult
from distill.evals.task import Context, Outcome, Task, TaskOptions, choice

MODES = ("whole", "slide", "both")
WINDOWS_PER_BATCH = 64


@dataclass
class SegmentationOptions(TaskOptions):
    prompts: str | None = None  # prompt set (None: the dataset's own)
    mode: str = "whole"  # whole, slide or both
    window: int | None = None  # slide: side in pixels (None: the evaluation size, rounded up to the patch)
    stride: int | None = None  # slide: step in pixels (None: three quarters of the window)
    chunk: int = 32  # classes raised to full size at a time

    def resolve(self, dataset: EvalDataset) -> None:
        self.prompts = self.prompts or dataset.prompts
        templates(self.prompts)
        choice("zeroshot_seg", "mode", self.mode, MODES)
        for name, value in (("chunk", self.chunk), ("window", self.window), ("stride", self.stride)):
            if value is not None and value < 1:
                raise UserError(f"zeroshot_seg.{name} = {value}: it must be at least 1.")


class ZeroShotSegmentation(Task):
    name = "zeroshot_seg"
    requires = (MASKS,)
    text = True
    headline = ("miou_value", "miou_final", "miou_value_slide", "miou_final_slide", "miou_chance")
    Options = SegmentationOptions

    def __init__(self, context: Context, options: SegmentationOptions):
        super().__init__(context, options)
        dataset, patch = context.dataset, context.model.image.patch
        if options.mode != "whole":
            options.window = options.window or round_up(dataset.size, patch)
            options.stride = options.stride or max(1, options.window * 3 // 4)
            if options.window % patch:
                raise UserError(
                    f"{self.name}.window = {options.window} is not a multiple of the model's patch, {patch}."
                )
        self.classes = context.texts.classes(dataset.prompt_names, options.prompts or dataset.prompts)  # [K, D]
        count = len(self.classes)
        self.matrices: dict[str, Tensor] = defaultdict(lambda: torch.zeros(count, count, dtype=torch.int64))
        self.images = 0

    @property
    def needs(self) -> Needs:
        whole = self.options.mode != "slide"
        return Needs(encode=whole, values=whole, masks=True)

    def read(self, batch: Batch) -> None:
        masks = [torch.from_numpy(example.mask).long() for example in batch.examples]  # each [H, W]
        self.images += len(masks)
        if self.options.mode != "slide":
            assert batch.patches is not None and batch.values is not None
            for kind, patches in (("final", batch.patches), ("value", batch.values)):
                self._whole(kind, cosine(patches, self.classes), masks)
        if self.options.mode != "whole":
            for image, mask in zip(batch.images, masks):
                self._slide(image, mask)

    def _whole(self, kind: str, scores: Tensor, masks: list[Tensor]) -> None:
        """scores [B, K, h, w]; images whose masks have one size are raised together."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for at, mask in enumerate(masks):
            groups[tuple(mask.shape)].append(at)
        for size, group in groups.items():
            labels = argmax_raised(scores[group], size, self.options.chunk)
            self._count(kind, torch.stack([masks[at] for at in group]), labels)

    def _slide(self, image: Tensor, mask: Tensor) -> None:
        """image [3, H, W], mask [h, w] at its own size."""
        options = self.options
        boxes = windows(tuple(image.shape[1:]), options.window, options.stride)
        crops = torch.stack([image[:, top:bottom, left:right] for top, left, bottom, right in boxes])
        kinds: dict[str, list[Tensor]] = {"final_slide": [], "value_slide": []}
        for part in crops.split(WINDOWS_PER_BATCH):
            _, final, value = encode(self.context.model, part, values=True)
            assert value is not None
            kinds["final_slide"].append(cosine(final, self.classes))
            kinds["value_slide"].append(cosine(value, self.classes))
        for kind, scores in kinds.items():
            labels = argmax_slide(torch.cat(scores), boxes, tuple(image.shape[1:]), tuple(mask.shape), options.chunk)
            self._count(kind, mask, labels)

    def _count(self, kind: str, truth: Tensor, labels: Tensor) -> None:
        self.matrices[kind] += confusion(truth, labels.cpu(), len(self.classes), self.context.dataset.ignore)

    def outcome(self) -> Outcome:
        dataset = self.context.dataset
        first = next(iter(self.matrices.values()))
        if first.sum() == 0:
            raise UserError(f"{dataset.name}: every pixel of its {self.images} masks is {dataset.ignore} (ignore).")
        metrics: dict[str, float] = {}
        details: dict[str, Any] = {}
        for kind, matrix in self.matrices.items():
            metrics[f"miou_{kind}"] = mean_iou(matrix)
            metrics[f"pixel_accuracy_{kind}"] = accuracy(matrix)
            iou = class_iou(matrix).tolist()
            details[f"iou_{kind}"] = {n: None if math.isnan(v) else v for n, v in zip(dataset.class_names, iou)}
        metrics["miou_chance"] = chance_miou(first)
        counts = {
            "images": self.images,
            "classes": len(self.classes),
            "classes_present": int((first.sum(1) > 0).sum()),
            "pixels": int(first.sum()),
        }
        protocol = self.protocol(classes=list(dataset.prompt_names), ignore=dataset.ignore)
        return Outcome(metrics, protocol, counts, details)


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """Zero-shot segmentation of `dataset` with `SegmentationOptions`; the protocol is in the module's docstring."""
    return run_task(ZeroShotSegmentation, model, dataset, **options)


def cosine(patches: Tensor, classes: Tensor) -> Tensor:
    """Patches `[B, h, w, D]` (any length) and unit class vectors `[K, D]` -> cosines `[B, K, h, w]`."""
    return (F.normalize(patches, dim=-1) @ classes.T.to(patches.device)).permute(0, 3, 1, 2)


def raised(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """`[B, K, h, w]` -> `[B, K, *size]`, bilinear, align_corners=False."""
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def argmax_chunks(parts: Iterable[Tensor]) -> Tensor:
    """Argmax over dim 1 of the concatenated `parts` `[B, k, H, W]`, one in memory at a time; the first maximum wins."""
    best: Tensor | None = None
    offset = 0
    for part in parts:
        value, at = part.max(1)
        at += offset
        offset += part.shape[1]
        if best is None:
            best, labels = value, at
        else:
            better = value > best
            best = torch.where(better, value, best)
            labels = torch.where(better, at, labels)
    return labels


def argmax_raised(scores: Tensor, size: tuple[int, ...], chunk: int) -> Tensor:
    """Labels `[B, *size]` int64: the argmax of `raised(scores, size)` without its full volume."""
    return argmax_chunks(raised(part, size) for part in scores.split(chunk, dim=1))


def windows(image: tuple[int, ...], window: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Boxes (top, left, bottom, right) covering an image (height, width), row by row; the last ones end at its border.

    An image smaller than the window along a side gets one window of its own length there.
    """
    tops, lefts = (_starts(length, window, stride) for length in image)
    height, width = (min(window, length) for length in image)
    return [(top, left, top + height, left + width) for top in tops for left in lefts]


def _starts(length: int, window: int, stride: int) -> list[int]:
    steps = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(step * stride, length - window), 0) for step in range(steps)]


def argmax_slide(
    scores: Tensor,
    boxes: list[tuple[int, int, int, int]],
    image: tuple[int, ...],
    size: tuple[int, ...],
    chunk: int,
) -> Tensor:
    """Labels `[*size]` int64 from the cosines of an image's windows, `[n, K, h, w]`, `chunk` classes at a time.

    Two rounds over the classes: the softmax's denominators (cosines lie in [-1, 1]: no overflow), then the means.
    """
    window = (boxes[0][2] - boxes[0][0], boxes[0][3] - boxes[0][1])
    parts = scores.split(chunk, dim=1)
    total = torch.stack([raised(part, window).exp().sum(1) for part in parts]).sum(0)  # [n, *window]
    cover = scores.new_zeros(image)
    for top, left, bottom, right in boxes:
        cover[top:bottom, left:right] += 1

    def mean(part: Tensor) -> Tensor:  # [n, k, h, w] -> [1, k, *size]
        shares = raised(part, window).exp() / total[:, None]
        volume = scores.new_zeros(part.shape[1], *image)
        for share, (top, left, bottom, right) in zip(shares, boxes):
            volume[:, top:bottom, left:right] += share
        return raised((volume / cover)[None], size)

    return argmax_chunks(mean(part) for part in parts)[0]
