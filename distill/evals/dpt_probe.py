"""A DPT head on a frozen encoder: trained on a split's features, or read from a file. Depth and normals share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.evals.cache import DenseCache
from distill.evals.dpt import DptHead, default_channels, tap_blocks
from distill.evals.dpt_files import load_head
from distill.evals.features import Batch, device_of
from distill.evals.linear_heads import optimise

IMAGES_AT_A_TIME = 8  # decoded


class DptSettings(Protocol):
    """The options of a task that a probe reads."""

    weights: str | None
    channels: int | None
    steps: int
    images: int
    memory: float


def check_head(task: str, model: Any, weights: str | None, outputs: int) -> None:
    """UserError for a file of weights that is none, or does not fit the model."""
    width = getattr(model.image, "width", None)
    if weights is not None and width is not None:
        with torch.random.fork_rng(devices=[]):  # the head's random start is drawn for nothing
            load_head(weights, task, width, outputs)


class DptProbe:
    """`add` the train split's batches, then `train`; or neither, with `settings.weights`."""

    def __init__(self, task: str, model: Any, settings: DptSettings, outputs: int):
        self.task, self.settings, self.outputs = task, settings, outputs
        self.device = device_of(model)
        self.blocks = tap_blocks(model.image.depth)
        self.cache = DenseCache(settings.memory, f"{task}.memory")
        self.head: DptHead | None = None
        if settings.weights is not None:
            self.head = load_head(settings.weights, task, model.image.width, outputs).to(self.device)

    def add(self, batch: Batch, labels: Sequence[Tensor]) -> None:
        """One batch of the train split with a label `[H, W, ...]` for each image."""
        taps = self._taps(batch)
        self.cache.add([tensor for tap in taps for tensor in tap], labels)

    def _taps(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """CLS-1 `[B, D]` and patches `[B, h, w, D]` of the tapped blocks."""
        return [(batch.layers[at][0][:, 0], batch.layers[at][1]) for at in self.blocks]

    def train(self, loss: Callable[[Tensor, list[Tensor], torch.Generator], Tensor], rate: float) -> None:
        """Minimises `loss(raw outputs [B, K, 8h, 8w], labels, random numbers)` with AdamW at the peak rate `rate`."""
        settings = self.settings
        generator = torch.Generator().manual_seed(0)
        batches = self.cache.batches(settings.images, generator, self.device)
        torch.manual_seed(0)  # the initial weights; evaluation puts the caller's random state back
        _, patches = next(batches)[0][:2]
        width = patches.shape[-1]
        channels = settings.channels or default_channels(width)
        head = DptHead(width, self.outputs, channels=channels, relu=self.task == "depth").to(self.device)

        def step() -> Tensor:
            features, labels = next(batches)
            return loss(head(list(zip(features[::2], features[1::2]))), labels, generator)

        optimise([list(head.parameters())], [rate], step, steps=settings.steps)
        self.head = head.eval()

    def raw(self, batch: Batch, read: Callable[[Tensor], Tensor] = lambda outputs: outputs) -> Tensor:
        """What `read` makes of the head's outputs `[b, K, 8h, 8w]` of a few images at a time, joined: `[B, ...]`.

        A `read` that takes K away keeps the outputs of all images from being there together.
        """
        assert self.head is not None
        taps = self._taps(batch)
        parts = []
        for at in range(0, len(batch.examples), IMAGES_AT_A_TIME):
            some = slice(at, at + IMAGES_AT_A_TIME)
            parts.append(read(self.head([(cls[some], patches[some]) for cls, patches in taps])))
        return torch.cat(parts)
