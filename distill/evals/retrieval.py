"""Image-text retrieval: recall at 1, 5 and 10, from image to text and from text to image.

Protocol: images are resized to a square of `size` (`fit`), all captions of the chosen field take part, similarity is
the cosine of image and text features. Every feature is scored: CLS-1, CLS-2, and `both`, the mean of the two unit
vectors.

- image to text (`i2t`): an image counts when any of its captions is among the k nearest of all captions.
- text to image (`t2i`): a caption counts when its image is among the k nearest images.
- Equal similarities (equal captions have bit-equal features) count by what a random order of the equals is expected to
  give, so that neither duplicates nor a collapsed model get anything for free.
- `chance_*`: expected recall of a random order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError, unknown
from distill.evals.datasets.base import CAPTIONS, EvalDataset
from distill.evals.engine import run_task
from distill.evals.features import FITS, Batch, Encoder, Needs
from distill.evals.per_image import mean_samples, ratio_samples
from distill.evals.results import TaskResult
from distill.evals.task import Context, Outcome, Task, TaskOptions, choice

RANKS = (1, 5, 10)
ROWS = 512  # queries compared at a time


@dataclass
class RetrievalOptions(TaskOptions):
    field: str | None = None  # caption field (None: the dataset's, or its only one)
    fit: str = "square"  # how images are resized: square or keep

    def resolve(self, dataset: EvalDataset) -> None:
        choice("retrieval", "fit", self.fit, FITS)
        self.field = _field(dataset, self.field)


class Retrieval(Task):
    name = "retrieval"
    requires = (CAPTIONS,)
    text = True
    headline = (
        *(f"{way}_r1_{feature}" for way in ("i2t", "t2i") for feature in ("cls1", "cls2", "both")),
        "chance_i2t_r1",
        "chance_t2i_r1",
    )
    Options = RetrievalOptions

    def __init__(self, context: Context, options: RetrievalOptions):
        super().__init__(context, options)
        self.features: dict[str, list[Tensor]] = {}
        self.captions: list[list[str]] = []
        self.indices: list[int] = []  # of the images with a caption
        self.without = 0

    @property
    def needs(self) -> Needs:
        return Needs(fit=self.options.fit)

    def read(self, batch: Batch) -> None:
        assert batch.cls is not None
        captions = [example.captions.get(self.options.field, []) for example in batch.examples]
        kept = [at for at, texts in enumerate(captions) if texts]
        self.without += len(captions) - len(kept)
        self.captions += [captions[at] for at in kept]
        self.indices += [batch.examples[at].index for at in kept]
        for name, feature in cls_features(batch.cls).items():
            self.features.setdefault(name, []).append(feature[kept])

    def outcome(self) -> Outcome:
        if not self.captions:
            raise UserError(f"{self.context.dataset.name} has no image with a caption '{self.options.field}'.")
        texts = [text for group in self.captions for text in group]
        encoded = self.context.texts.encode(texts)  # [T, D]
        owner = torch.tensor([at for at, group in enumerate(self.captions) for _ in group], device=encoded.device)
        metrics: dict[str, float] = {}
        per_image: dict[str, Any] = {}
        for name, parts in self.features.items():
            images = torch.cat(parts)  # [N, D]
            for way, hits in (
                ("i2t", image_hits(images, encoded, owner)),
                ("t2i", text_hits(images, encoded, owner)),
            ):
                metrics |= {f"{way}_r{k}_{name}": float(value.mean()) for k, value in hits.items()}
                per_image[f"{way}_r1_{name}"] = self._samples(hits[1], owner if way == "t2i" else None)
        metrics |= {f"chance_i2t_r{k}": value for k, value in chance_image_to_text(owner).items()}
        metrics |= {f"chance_t2i_r{k}": min(1.0, k / len(self.captions)) for k in RANKS}
        counts = {"images": len(self.captions), "captions": len(texts), "distinct_captions": len(set(texts))}
        if self.without:
            counts["images_without_caption"] = self.without
        return Outcome(metrics, self.protocol(ranks=list(RANKS)), counts, {}, per_image)

    def _samples(self, hits: Tensor, owner: Tensor | None) -> dict[str, Any]:
        """Recall at 1 of each image, or of its captions (their sum and number) when `owner` says whose they are."""
        if owner is None:
            return mean_samples(dict(zip(self.indices, hits.tolist())))
        total = hits.new_zeros(len(self.indices)).index_add(0, owner, hits)
        return ratio_samples(dict(zip(self.indices, zip(total.tolist(), owner.bincount().tolist()))))


def run(model: Encoder, dataset: EvalDataset, **options: Any) -> TaskResult:
    """Retrieval on `dataset` with `RetrievalOptions`; the protocol is in the module's docstring."""
    return run_task(Retrieval, model, dataset, **options)


def _field(dataset: EvalDataset, field: str | None) -> str:
    fields = dataset.caption_fields
    field = field or dataset.caption_field or (fields[0] if len(fields) == 1 else None)
    if field is None:
        raise UserError(
            f"{dataset.name} has the caption fields {', '.join(fields)}. Choose one for retrieval: add ?field=NAME."
        )
    if field not in fields:
        raise unknown(f"caption field of {dataset.name}", field, fields)
    return field


def cls_features(cls: Tensor) -> dict[str, Tensor]:
    """CLS tokens `[B, C, D]` -> unit vectors `[B, D]`: cls1; with two tokens also cls2, and both (their mean)."""
    unit = F.normalize(cls, dim=-1)
    named = {f"cls{at + 1}": unit[:, at] for at in range(unit.shape[1])}
    if len(named) > 1:
        named["both"] = F.normalize(unit.mean(1), dim=-1)
    return named


def image_hits(images: Tensor, texts: Tensor, owner: Tensor) -> dict[int, Tensor]:
    """Of each image `[N]`, float64: how probably one of its captions is among the first k of RANKS.

    images `[N, D]` and texts `[T, D]` of unit length; owner `[T]`: each text's image.
    """
    hits: dict[int, list[Tensor]] = {k: [] for k in RANKS}
    similarity = _Similarity(texts)
    for start in range(0, len(images), ROWS):
        scores = similarity(images[start : start + ROWS])  # [n, T]
        own = owner == torch.arange(start, start + len(scores), device=owner.device)[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)  # [n, 1]
        above = (scores > best).sum(1)
        equal = scores == best
        for k in RANKS:
            hits[k].append(hit_probability(above, (equal & own).sum(1), (equal & ~own).sum(1), k))
    return {k: torch.cat(parts) for k, parts in hits.items()}


def text_hits(images: Tensor, texts: Tensor, owner: Tensor) -> dict[int, Tensor]:
    """Of each caption `[T]`, float64: how probably its image is among the first k; arguments as in `image_hits`."""
    hits: dict[int, list[Tensor]] = {k: [] for k in RANKS}
    similarity = _Similarity(images)
    for start in range(0, len(texts), ROWS):
        scores = similarity(texts[start : start + ROWS])  # [t, N]
        own = scores.gather(1, owner[start : start + ROWS, None])  # [t, 1]
        above = (scores > own).sum(1)
        ties = (scores == own).sum(1) - 1
        for k in RANKS:
            hits[k].append(hit_probability(above, torch.ones_like(ties), ties, k))
    return {k: torch.cat(parts) for k, parts in hits.items()}


class _Similarity:
    """Dot products with fixed targets `[T, D]`; equal targets get bit-equal ones (a matrix product alone may not)."""

    def __init__(self, targets: Tensor):
        self.distinct, self.which = torch.unique(targets, dim=0, return_inverse=True)

    def __call__(self, queries: Tensor) -> Tensor:  # [Q, D] -> [Q, T]
        return (queries @ self.distinct.T)[:, self.which]


def hit_probability(above: Tensor, own: Tensor, others: Tensor, k: int) -> Tensor:
    """Chance that one of `own` right entries comes among the first k, float64.

    `above` wrong entries stand in front; the `own` right and `others` wrong ones are equal and in random order:
    1 - C(others, r) / C(own + others, r) with r = k - above places left. Without right entries, or with a count below
    0 (scores that equal nothing, not even themselves), there is no hit.
    """
    places = (k - above).clamp(min=0).double()
    own, others = own.double(), others.double()
    none = torch.exp(_log_choose(others, places) - _log_choose(own + others, places))
    sure = torch.where(places > others, torch.ones_like(none), 1 - none)
    return torch.where((own > 0) & (others >= 0), sure, torch.zeros_like(none))


def _log_choose(n: Tensor, r: Tensor) -> Tensor:
    r = torch.minimum(r, n)
    return torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma(n - r + 1)


def chance_image_to_text(owner: Tensor) -> dict[int, float]:
    """Expected image-to-text recall of a random order of all captions."""
    own = owner.bincount()
    zero = torch.zeros_like(own)
    return {k: float(hit_probability(zero, own, len(owner) - own, k).mean()) for k in RANKS}
