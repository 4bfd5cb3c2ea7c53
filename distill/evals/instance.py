"""Instance retrieval: the nearest image should show the same instance.

Protocol (UnED, Ypsilantis et al. 2023, as the paper's Table 7 uses it): features of the frozen model, unit length; an
image counts when the nearest image of the index, by cosine, has its label, or any of its labels (recall@1). The index
holds images of the same domain only; the score is the mean over domains, each counting alike. A dataset without domains
is one domain.

- `index=train`: queries are the evaluated split, the index is the train split (UnED: test and index). A domain of which
  the train split has no image is searched as with `index=rest` (five of UnED's eight).
- `index=rest`: each image is searched among all others of the evaluated split.
- Unsaid, it is train where there is a train split. Queries whose label is not in the index have no right answer: they
  are left out and counted.

Every feature is scored: CLS-1, CLS-2, and `patches`, the mean of the final patch tokens. Images are resized to a square
(`fit`). `recall1_chance`: an index image at random. On the scenes the class of the dominant thing is the instance.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.evals.datasets.base import LABELS, TRAIN, EvalDataset
from distill.evals.engine import run_task
from distill.evals.features import FITS, Batch, Encoder, Needs
from distill.evals.labelled import Labelled
from distill.evals.per_image import group_samples
from distill.evals.results import TaskResult
from distill.evals.task import Context, Outcome, Task, TaskOptions, choice

INDICES = ("train", "rest")
ROWS = 1024  # queries compared at a time
ONE_DOMAIN = "all"
CHANCE = "recall1_chance"


@dataclass
class InstanceOptions(TaskOptions):
    index: str | None = None  # where neighbours are looked for: train or rest (None: train where there is one)
    fit: str = "square"  # how images are resized: square or keep

    def resolve(self, dataset: EvalDataset) -> None:
        self.index = self.index or ("train" if TRAIN in dataset.has else "rest")
        choice("instance", "index", self.index, INDICES)
        choice("instance", "fit", self.fit, FITS)


class _Images(Labelled):
    """With the domains of the images, and all their labels."""

    def __init__(self) -> None:
        super().__init__()
        self.domains: list[str] = []
        self.all_labels: list[tuple[int, ...]] = []

    def add(self, batch: Batch) -> list[int]:
        kept = super().add(batch)
        self.domains += [batch.examples[at].domain or ONE_DOMAIN for at in kept]
        examples = [batch.examples[at] for at in kept]
        self.all_labels += [(example.label, *example.also) for example in examples if example.label is not None]
        return kept

    def of(self, domain: str) -> tuple[Tensor, Tensor]:
        """Positions `[n]` of a domain's images, and their labels `[n, L]`, filled up with the first."""
        at = [i for i, name in enumerate(self.domains) if name == domain]
        chosen = [self.all_labels[i] for i in at]
        most = max(map(len, chosen), default=1)
        filled = [labels + labels[:1] * (most - len(labels)) for labels in chosen]
        return torch.tensor(at, dtype=torch.int64), torch.tensor(filled)


class InstanceRetrieval(Task):
    name = "instance"
    requires = (LABELS,)
    headline = ("recall1_cls1", "recall1_cls2", "recall1_patches", CHANCE)
    Options = InstanceOptions

    def __init__(self, context: Context, options: InstanceOptions):
        super().__init__(context, options)
        self.queries = _Images()
        self.index = _Images() if options.index == "train" else self.queries

    @classmethod
    def fits(cls, options: InstanceOptions) -> bool:
        return options.index == "train"

    @property
    def needs(self) -> Needs:
        return Needs(fit=self.options.fit)

    def fit(self, batch: Batch) -> None:
        self.index.add(batch)

    def read(self, batch: Batch) -> None:
        self.queries.add(batch)

    def outcome(self) -> Outcome:
        name = self.context.dataset.name
        by_domain: dict[str, dict[str, float]] = {}
        hits: dict[str, dict[int, tuple[int, float]]] = defaultdict(dict)  # by metric and image: domain, hit
        without = 0
        for number, domain in enumerate(sorted(set(self.queries.domains))):
            found, left_out = self._domain(domain)
            without += left_out
            if not found:
                continue
            by_domain[domain] = {key: sum(of_image.values()) / len(of_image) for key, of_image in found.items()}
            for key, of_image in found.items():
                hits[key] |= {at: (number, value) for at, value in of_image.items()}
        if not by_domain:
            raise UserError(f"{name}: no image has its label in the index, so nothing can be found.")
        metrics = {key: sum(scores[key] for scores in by_domain.values()) / len(by_domain) for key in hits}
        counts = {
            "images": len(hits[CHANCE]),
            "index_images": len(self.index.labels),
            "domains": len(by_domain),
        }
        if without:
            counts["images_without_match"] = without
        per_image = {key: group_samples(of_image) for key, of_image in hits.items() if key != CHANCE}
        return Outcome(metrics, self.protocol(), counts, {"domains": by_domain}, per_image)

    def _domain(self, domain: str) -> tuple[dict[str, dict[int, float]], int]:
        """By metric and image, whether it was found (or how probably by chance), and how many were left out."""
        at, labels = self.queries.of(domain)
        searched = self.index if domain in self.index.domains else self.queries
        others, theirs = searched.of(domain)
        itself = searched is self.queries
        matches = torch.stack([shared(theirs, own).sum() for own in labels]) - int(itself)  # [n]
        asked = matches > 0
        left_out = int((~asked).sum())
        if not asked.any():
            return {}, left_out
        values = {}
        for name in self.queries.parts:
            queries, index = self.queries.features(name)[at], searched.features(name)[others]
            values[f"recall1_{name}"] = shared(theirs[nearest(queries, index, itself)], labels)
        values[CHANCE] = matches.double() / (len(others) - int(itself))
        images = torch.tensor(self.queries.indices)[at][asked].tolist()
        return {key: dict(zip(images, value[asked].double().tolist())) for key, value in values.items()}, left_out


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """Instance retrieval on `dataset` with `InstanceOptions`; the protocol is in the module's docstring."""
    return run_task(InstanceRetrieval, model, dataset, **options)


def shared(labels: Tensor, others: Tensor) -> Tensor:
    """Whether `[n, L]` and `[n, M]` (or one for all, `[M]`) have a label in common, bool `[n]`."""
    return (labels[..., :, None] == others[..., None, :]).flatten(-2).any(-1)


def nearest(queries: Tensor, index: Tensor, itself: bool) -> Tensor:
    """Positions `[Q]` in index `[N, D]` of the highest cosine to queries `[Q, D]`; `itself`: not a query's own."""
    found = []
    for start in range(0, len(queries), ROWS):
        scores = queries[start : start + ROWS] @ index.T  # [q, N]
        if itself:
            scores.diagonal(start).fill_(-torch.inf)
        found.append(scores.argmax(1).cpu())
    return torch.cat(found)
