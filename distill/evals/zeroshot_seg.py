"""Zero-shot segmentation: each pixel gets the class whose text is nearest to its patch.

Protocol (TIPSv2, arXiv 2604.12012, appendix, and its published notebook; Table 5 whole images, Table 8 windows):

- Images: short side to `size`, aspect kept, the long side's fraction cut off, bicubic; [0, 1]. What the model sees is
  raised to a multiple of its patch, bicubic (`distill.evals.features`, fit "short").
- Patches, unit length: final tokens and the value path of the last block, both unless `paths` says one
  (`..._final`, `..._value`).
- Text: every class name in every prompt of the set, unit length, averaged, unit length again. Prompt sets: `tcl` (the
  nine of TCL, the paper's), `photo`, `plain` (the name alone; what the scenes use), `maskclip`, `clip7`, `clip80`.
- whole: cosine of patch and class, raised bilinearly (align_corners=False) to the mask's size, argmax. No temperature.
- slide: windows of `window` pixels every `stride` (the paper's notebook: 448 and 336; TCL: 448 and 224), the last ones
  moved back inside. In each: cosine raised bilinearly to the window, softmax over classes without temperature. Summed
  over windows, divided by how many cover a pixel, raised to the mask's size, argmax.
- `background`, in datasets that have a class of this name (VOC21, Context60, COCO-Object): `class` treats it as any
  other text (MaskCLIP's way); `threshold` drops its text, and a pixel is background where no other class has a share
  above `threshold` (TCL's way, 0.5; the shares are a softmax of cosines over the model's temperature). The paper does
  not say which it used: report both.
- Score: one confusion matrix over all pixels but those marked ignore; mean IoU over classes with a non-empty union;
  pixel accuracy. `miou_chance` is what uniformly drawn labels are expected to get.

Memory: see `distill.evals.segment`; labels are those of the full volume of classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.evals.datasets.base import MASKS, EvalDataset
from distill.evals.engine import run_task
from distill.evals.features import PATHS, Batch, Encoder, Needs, encode_parts, round_up
from distill.evals.metrics import accuracy, chance_miou, class_iou, confusion, mean_iou
from distill.evals.per_image import iou_samples, overlaps
from distill.evals.prompts import templates
from distill.evals.results import TaskResult
from distill.evals.segment import background_of, best_raised, best_slide, cosine, together, windows
from distill.evals.task import Context, Outcome, Task, TaskOptions, choice, require_values

MODES = ("whole", "slide", "both")
BACKGROUNDS = ("class", "threshold")


@dataclass
class SegmentationOptions(TaskOptions):
    prompts: str | None = None  # prompt set (None: the dataset's own)
    mode: str = "whole"  # whole, slide or both
    window: int | None = None  # slide: side in pixels (None: the evaluation size, rounded up to the patch)
    stride: int | None = None  # slide: step in pixels (None: three quarters of the window)
    background: str = "class"  # how a class called background is found: class or threshold
    threshold: float = 0.5  # with background=threshold: the share of a class below which a pixel is background
    paths: str = "both"  # which patch features: final, value or both
    chunk: int = 32  # classes raised to full size at a time

    def resolve(self, dataset: EvalDataset) -> None:
        self.prompts = self.prompts or dataset.prompts
        templates(self.prompts)
        choice("zeroshot_seg", "mode", self.mode, MODES)
        choice("zeroshot_seg", "background", self.background, BACKGROUNDS)
        choice("zeroshot_seg", "paths", self.paths, tuple(PATHS))
        for name, value in (("chunk", self.chunk), ("window", self.window), ("stride", self.stride)):
            if value is not None and value < 1:
                raise UserError(f"zeroshot_seg.{name} = {value}: it must be at least 1.")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"zeroshot_seg.threshold = {self.threshold}: it must be from 0 to 1 (usual: 0.5).")
        if self.background == "threshold" and background_of(dataset.class_names) is None:
            raise UserError(
                f"zeroshot_seg.background = threshold, but {dataset.name} has no class called background. "
                f"Use zeroshot_seg.background=class."
            )


class ZeroShotSegmentation(Task):
    name = "zeroshot_seg"
    requires = (MASKS,)
    text = True
    headline = ("miou_value", "miou_final", "miou_value_slide", "miou_final_slide", "miou_chance")
    Options = SegmentationOptions
    resources = ("chunk",)

    def __init__(self, context: Context, options: SegmentationOptions):
        super().__init__(context, options)
        dataset, patch = context.dataset, context.model.image.patch
        if options.mode != "whole":
            options.window = options.window or round_up(dataset.size, patch)
            options.stride = options.stride or max(1, options.window * 3 // 4)
        self.backdrop = background_of(dataset.class_names) if options.background == "threshold" else None
        named = [at for at in range(len(dataset.class_names)) if at != self.backdrop]
        prompts = [dataset.prompt_names[at] for at in named]
        self.texts = context.texts.classes(prompts, options.prompts or dataset.prompts)  # [k, D]
        self.label = torch.tensor(named, device=self.texts.device)  # [k]: the class of each text
        self.temperature = 1.0 if self.backdrop is None else float(getattr(context.model, "temperature", 0.01))
        self.kinds = PATHS[options.paths]
        self.matrices: dict[str, Tensor] = {}
        self.overlaps: dict[str, dict[int, list[int]]] = defaultdict(dict)  # by image: class, hits, union, ...
        self.images = 0

    @classmethod
    def check_model(cls, model: Any, options: SegmentationOptions) -> None:
        super().check_model(model, options)
        if "value" in PATHS[options.paths]:
            require_values(model)
        patch = getattr(model.image, "patch", 1)
        if options.mode != "whole" and options.window is not None and options.window % patch:
            raise UserError(f"{cls.name}.window = {options.window} is not a multiple of the model's patch, {patch}.")

    @property
    def needs(self) -> Needs:
        whole = self.options.mode != "slide"
        values, final = whole and "value" in self.kinds, "final" in self.kinds
        return Needs(encode=whole, values=values, final=final, masks=True, fit="short")

    def read(self, batch: Batch) -> None:
        self.images += len(batch.examples)
        if self.options.mode != "slide":
            for kind in self.kinds:
                patches = batch.patches if kind == "final" else batch.values
                assert patches is not None
                self._whole(kind, patches, batch)
        if self.options.mode != "whole":
            self._slide(batch)

    def _whole(self, kind: str, patches: Tensor, batch: Batch) -> None:
        """patches [B, h, w, D]; images whose masks have one size are raised together, a few at a time."""
        scores = cosine(patches, self.texts)  # [B, k, h, w]
        if self.backdrop is not None:
            scores = (scores / self.temperature).softmax(1)
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for at, example in enumerate(batch.examples):
            assert example.mask is not None
            groups[example.mask.shape].append(at)
        for size, group in groups.items():
            for some in together(group, size, self.options.chunk):
                labels = self._labels(*best_raised(scores[some], size, self.options.chunk))
                for at, label in zip(some, labels):
                    self._count(kind, batch, at, label)

    def _slide(self, batch: Batch) -> None:
        """All windows of all images go through the model together, in parts of one memory size."""
        options, (height, width) = self.options, batch.images.shape[2:]
        boxes = windows((height, width), options.window, options.stride)
        crops = torch.stack([batch.images[:, :, t:b, left:right] for t, left, b, right in boxes], 1)  # [B, n, 3, ., .]
        found = ("value" in self.kinds, "final" in self.kinds)
        features = encode_parts(self.context.model, crops.flatten(0, 1), *found)
        for kind in self.kinds:
            patches = features[1] if kind == "final" else features[2]
            assert patches is not None
            scores = (cosine(patches, self.texts) / self.temperature).unflatten(0, (-1, len(boxes)))  # [B, n, k, h, w]
            for at, example in enumerate(batch.examples):
                assert example.mask is not None
                best = best_slide(scores[at], boxes, (height, width), example.mask.shape)
                self._count(f"{kind}_slide", batch, at, self._labels(*best))

    def _labels(self, share: Tensor, at: Tensor) -> Tensor:
        """Which text is best, and by how much -> classes of the dataset."""
        labels = self.label[at]
        return labels if self.backdrop is None else labels.where(share > self.options.threshold, self.backdrop)

    def _count(self, kind: str, batch: Batch, at: int, labels: Tensor) -> None:
        dataset, example = self.context.dataset, batch.examples[at]
        truth = torch.from_numpy(example.mask).long()
        matrix = confusion(truth, labels.cpu(), len(dataset.class_names), dataset.ignore)
        self.matrices[kind] = self.matrices[kind] + matrix if kind in self.matrices else matrix
        self.overlaps[kind][example.index] = overlaps(matrix)

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
            "classes": len(first),
            "classes_present": int((first.sum(1) > 0).sum()),
            "pixels": int(first.sum()),
        }
        protocol = self.protocol(classes=list(dataset.prompt_names), ignore=dataset.ignore)
        if self.backdrop is not None:
            details["temperature"] = self.temperature  # the model's own: no part of how it is measured
        per_image = {f"miou_{kind}": iou_samples(of_image) for kind, of_image in self.overlaps.items()}
        return Outcome(metrics, protocol, counts, details, per_image)


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """Zero-shot segmentation of `dataset` with `SegmentationOptions`; the protocol is in the module's docstring."""
    return run_task(ZeroShotSegmentation, model, dataset, **options)
