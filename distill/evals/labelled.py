"""Features of the images that have a label, as the tasks that compare images keep them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.evals.features import Batch


class Labelled:
    """Unit features by name (each CLS, and `patches`, the mean of the final patch tokens) and labels of images."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}
        self.labels: list[int] = []
        self.indices: list[int] = []  # of the images with a label
        self.without = 0

    def add(self, batch: Batch) -> list[int]:
        """Keeps the images of a batch that have a label; returns their positions in it."""
        assert batch.cls is not None and batch.patches is not None
        labels = [example.label for example in batch.examples]
        kept = [at for at, label in enumerate(labels) if label is not None]
        self.without += len(labels) - len(kept)
        self.labels += [label for label in labels if label is not None]
        self.indices += [batch.examples[at].index for at in kept]
        named = {f"cls{at + 1}": batch.cls[:, at] for at in range(batch.cls.shape[1])}
        named["patches"] = batch.patches.mean((1, 2))
        for name, feature in named.items():
            self.parts.setdefault(name, []).append(F.normalize(feature[kept], dim=-1))
        return kept

    def features(self, name: str) -> Tensor:
        return torch.cat(self.parts[name])  # [N, D]

    def targets(self, name: str) -> Tensor:
        return torch.tensor(self.labels, device=self.parts[name][0].device)  # [N]
