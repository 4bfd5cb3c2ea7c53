"""Instance retrieval: the nearest image should show the same instance.

Protocol (UnED, Ypsilantis et al. 2023): features of the frozen model, unit length; an image counts when the nearest
image of the index, by cosine, is of its domain and has its label, or any of its labels (recall@1 over all queries). The
score is the mean over domains, each counting alike. A dataset without domains is one domain.

- `scope=merged`: the indexes of all domains are searched together, the standard protocol of UnED's official repository.
  `scope=separate`: that of the query's own domain alone. Which of the two the published numbers (TIPSv2's Table 7) are
  of is not known here.
- `index=train`: queries are the evaluated split, the index is the train split (UnED: test and index). A domain of which
  the train split has no image is its own index (five of UnED's eight).
- `index=rest`: the evaluated split is its own index.
- Unsaid, the index is train where there is a train split. Of the index only the query itself is left out. Queries whose
  label is not in the index have no right answer: they are misses, and counted (`images_without_match`).

Every feature is scored: CLS-1, CLS-2, and `patches`, the mean of the final patch tokens. Images are resized to a square
(`fit`). `recall1_chance`: an index image at random. On the scenes the class of the dominant thing is the instance.
"""

from __future__ import annotations

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

SCOPES = ("merged", "separate")
INDICES = ("train", "rest")
ROWS = 1024  # queries compared at a time
NOT_THERE = -1
ONE_DOMAIN = "all"
CHANCE = "recall1_chance"


@dataclass
class InstanceOptions(TaskOptions):
    scope: str = "merged"  # the indexes of all domains together, or that of the query's domain: merged or separate
    index: str | None = None  # where neighbours are looked for: train or rest (None: train where there is one)
    fit: str = "square"  # how images are resized: square or keep

    def resolve(self, dataset: EvalDataset) -> None:
        self.index = self.index or ("train" if TRAIN in dataset.has else "rest")
        choice("instance", "scope", self.scope, SCOPES)
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

    def of(self, domain: str) -> Tensor:
        """Positions `[n]` of a domain's images."""
        return torch.tensor([at for at, name in enumerate(self.domains) if name == domain], dtype=torch.int64)

    def labels_of(self, at: Tensor) -> Tensor:
        """All labels `[n, L]` of the images at some positions `[n]`, filled up with the first."""
        chosen = [self.all_labels[i] for i in at.tolist()]
        most = max(map(len, chosen), default=1)
        return torch.tensor([labels + labels[:1] * (most - len(labels)) for labels in chosen]).reshape(-1, most)


@dataclass
class _Part:
    """A domain's images in the index."""

    images: _Images  # among which they are
    at: Tensor  # [N] their positions there
    labels: Tensor  # [N, L]


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
        parts = self._parts()
        matches, chance = self._matches(parts)
        if not matches.any():
            raise UserError(
                f"{self.context.dataset.name}: no image has its label in the index, so nothing can be found."
            )
        values = {f"recall1_{name}": self._found(name, parts).double() for name in self.queries.parts}
        values[CHANCE] = chance
        domains = sorted(set(self.queries.domains))
        positions = {domain: self.queries.of(domain) for domain in domains}
        scores = {d: {key: float(value[at].mean()) for key, value in values.items()} for d, at in positions.items()}
        metrics = {key: sum(of_domain[key] for of_domain in scores.values()) / len(domains) for key in values}
        counts = {
            "images": len(matches),
            "index_images": sum(len(part.at) for part in parts.values()),
            "domains": len(domains),
        }
        if not matches.all():
            counts["images_without_match"] = int((matches == 0).sum())
        groups = [domains.index(domain) for domain in self.queries.domains]
        per_image = {
            key: group_samples(dict(zip(self.queries.indices, zip(groups, value.tolist()))))
            for key, value in values.items()
            if key != CHANCE
        }
        return Outcome(metrics, self.protocol(), counts, {"domains": scores}, per_image)

    def _parts(self) -> dict[str, _Part]:
        """The index by domain: the domains of the queries, and where these are merged all others that it has."""
        merged = self.options.scope == "merged"
        parts = {}
        for domain in sorted({*self.queries.domains, *(self.index.domains if merged else ())}):
            images = self.index if domain in self.index.domains else self.queries
            at = images.of(domain)
            parts[domain] = _Part(images, at, images.labels_of(at))
        return parts

    def _matches(self, parts: dict[str, _Part]) -> tuple[Tensor, Tensor]:
        """For each query how many images of the index are right, and what share of it, `[Q]` each."""
        whole = sum(len(part.at) for part in parts.values())
        matches = torch.zeros(len(self.queries.labels), dtype=torch.int64)
        searched = torch.zeros_like(matches)
        for domain in set(self.queries.domains):
            part, at = parts[domain], self.queries.of(domain)
            itself = int(part.images is self.queries)
            labels = self.queries.labels_of(at)
            matches[at] = torch.stack([shared(part.labels, own).sum() for own in labels]) - itself
            searched[at] = (whole if self.options.scope == "merged" else len(part.at)) - itself
        return matches, matches.double() / searched.clamp(min=1)

    def _found(self, name: str, parts: dict[str, _Part]) -> Tensor:
        """Whether the nearest image of each query is right, by one feature, bool `[Q]`."""
        queries, index = self.queries.features(name), self.index.features(name)
        best = torch.full((len(queries),), -torch.inf)
        found = torch.zeros(len(queries), dtype=torch.bool)
        for domain, part in parts.items():
            own = self.queries.of(domain)
            asking = torch.arange(len(queries)) if self.options.scope == "merged" else own
            itself = torch.full((len(queries),), NOT_THERE)
            if part.images is self.queries:
                itself[own] = torch.arange(len(own))
            images = (queries if part.images is self.queries else index)[part.at]
            scores, at = nearest(queries[asking], images, itself[asking])
            right = shared(part.labels[at], self.queries.labels_of(asking)) & torch.isin(asking, own)
            nearer = scores > best[asking]
            found[asking] = torch.where(nearer, right, found[asking])
            best[asking] = torch.where(nearer, scores, best[asking])
        return found


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """Instance retrieval on `dataset` with `InstanceOptions`; the protocol is in the module's docstring."""
    return run_task(InstanceRetrieval, model, dataset, **options)


def shared(labels: Tensor, others: Tensor) -> Tensor:
    """Whether `[n, L]` and `[n, M]` (or one for all, `[M]`) have a label in common, bool `[n]`."""
    return (labels[..., :, None] == others[..., None, :]).flatten(-2).any(-1)


def nearest(queries: Tensor, index: Tensor, itself: Tensor) -> tuple[Tensor, Tensor]:
    """The highest cosine of each of Q queries `[Q, D]` to an index `[N, D]`, and its position there, `[Q]` each.

    itself `[Q]`: the position that is the query itself and does not count (NOT_THERE: none).
    """
    best, found = [], []
    for start in range(0, len(queries), ROWS):
        scores = queries[start : start + ROWS] @ index.T  # [q, N]
        own = itself[start : start + ROWS]
        rows = (own != NOT_THERE).nonzero()[:, 0]
        scores[rows, own[rows]] = -torch.inf
        score, at = scores.max(1)
        best.append(score.cpu())
        found.append(at.cpu())
    return torch.cat(best), torch.cat(found)
