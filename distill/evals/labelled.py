"""Features of the images that have a label, as the tasks that compare images keep them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.evals.cache import Store
from distill.evals.features import Batch


class Labelled:
    """Unit features by name (each CLS, and `patches`, the mean of the final patch tokens) and labels of images.

    Features are kept on the CPU, in `store` if one is given: those of a large split would fill the model's device.
    """

    def __init__(self, store: Store | None = None) -> None:
        self.keep = Tensor.cpu if store is None else store.keep
        self.device = torch.device("cpu")  # the model's
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
        self.device = batch.cls.device
        named = {f"cls{at + 1}": batch.cls[:, at] for at in range(batch.cls.shape[1])}
        named["patches"] = batch.patches.mean((1, 2))
        for name, feature in named.items():
            self.parts.setdefault(name, []).append(self.keep(F.normalize(feature[kept], dim=-1)))
        return kept

    def features(self, name: str) -> Tensor:
        """`[N, D]`, on the model's device."""
        return torch.cat(self.parts[name]).to(self.device)

    def blocks(self, name: str, rows: int) -> Iterator[Tensor]:
        """The same in parts `[n, D]`, of at most `rows` where no batch had more, each made when it is asked for."""
        parts = self.parts[name]
        count = max(1, rows // max(1, *map(len, parts)))
        for at in range(0, len(parts), count):
            yield torch.cat(parts[at : at + count]).to(self.device)

    def targets(self) -> Tensor:
        return torch.tensor(self.labels, device=self.device)  # [N]


def feature_bytes(batch: Batch) -> int:
    """What `Labelled` keeps of one image: each CLS and the mean patch token, float32."""
    assert batch.cls is not None
    _, tokens, width = batch.cls.shape
    return 4 * (tokens + 1) * width
