"""`teacher.heads.kind: fitted`: prototypes are clusters of the teacher's own features.

The head is linear on the normalised feature: centred, of length 1, then its cosines with K centroids. A softmax over
them is the posterior of a mixture of K equal von Mises-Fisher distributions, so neither a centre nor Sinkhorn-Knopp is
needed: the temperature, set so that targets have a given entropy, takes their place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config.schema import Config
from distill.errors import UserError
from distill.models.vision import ImageOutput
from distill.objectives.moments import Moments
from teachers.heads import prototype_parts
from teachers.heads.calibration import temperature_for
from teachers.heads.kmeans import SphericalKMeans

WARM = 10  # one batch in so many, the first ones, gives the mean that the others are centred by
SAMPLE = 2048  # tokens by which the temperature is set
WORDS = {"cls": "CLS tokens", "patch": "patches"}  # in messages


class FittedHead(nn.Module):
    """What `PrototypeHead` offers, without an MLP: `bottleneck` is the centred feature itself, `[..., D]`.

    `prototypes` `[K, D]` have length 1. Buffers: `mean` `[D]`, and `temperature`, a scalar, which takes the place of
    the recipe's teacher temperature.
    """

    mean: Tensor
    temperature: Tensor

    def __init__(self, width: int, prototypes: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.prototypes = nn.Parameter(torch.zeros(prototypes, width))
        self.register_buffer("temperature", torch.ones(()))

    def bottleneck(self, x: Tensor) -> Tensor:
        """`x [..., D]` -> `[..., D]` of length 1, float32."""
        return F.normalize(x.float() - self.mean, dim=-1)

    def directions(self) -> Tensor:
        """The prototypes `[K, D]`, each of length 1, float32."""
        return self.prototypes

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., D]` -> cosines `[..., K]`, float32 under autocast too."""
        with torch.autocast(x.device.type, enabled=False):
            return self.bottleneck(x) @ self.directions().T


class FittedHeads(nn.Module):
    """Fitted heads for CLS and patches; with `tied` both have the same prototypes, each centred by its own mean."""

    def __init__(self, width: int, prototypes: int, tied: bool):
        super().__init__()
        self.cls, self.patch = FittedHead(width, prototypes), FittedHead(width, prototypes)
        self.tied = tied
        if tied:
            self.patch.prototypes = self.cls.prototypes


class Fit:
    """Fits `heads` to a stream of the teacher's clean outputs: `add` each of `batches`, then `finish`."""

    def __init__(self, heads: FittedHeads, cfg: Config, batches: int):
        self.heads, self.entropy = heads, cfg.teacher.heads.entropy
        self.warm = max(1, batches // WARM)
        self.seen = 0
        self.kinds = prototype_parts(cfg)
        prototypes, width = heads.patch.prototypes.shape
        groups = [self.kinds] if heads.tied else [[kind] for kind in self.kinds]
        self.groups = [(group, SphericalKMeans(prototypes, width, cfg.seed + i)) for i, group in enumerate(groups)]
        self.moments = {kind: Moments(width) for kind in self.kinds}
        self.samples: dict[str, list[Tensor]] = {kind: [] for kind in self.kinds}  # of the newest batches, [T, D] each

    def head(self, kind: str) -> FittedHead:
        return self.heads.cls if kind == "cls" else self.heads.patch

    @torch.no_grad()
    def add(self, output: ImageOutput) -> None:
        """Takes in a batch: cls `[B, C, D]`, of which the first token counts, and patches `[B, N, D]`."""
        tokens = {"cls": output.cls[:, 0].float(), "patch": output.patches.flatten(0, 1).float()}  # [T, D]
        self.seen += 1
        if self.seen <= self.warm:
            for kind in self.kinds:
                self.moments[kind].add(tokens[kind])
                self.head(kind).mean.copy_(self.moments[kind].mean())
            return
        units = {kind: self.head(kind).bottleneck(tokens[kind]) for kind in self.kinds}  # [T, D]
        for group, clusters in self.groups:
            clusters.add(torch.cat([units[kind] for kind in group]))
        for kind in self.kinds:
            kept = self.samples[kind]
            kept.append(units[kind][:SAMPLE])
            while len(kept) > 1 and sum(map(len, kept[1:])) >= SAMPLE:
                kept.pop(0)

    @torch.no_grad()
    def finish(self) -> None:
        """Puts the prototypes into the heads and sets their temperatures. Raises UserError after too few images."""
        for group, clusters in self.groups:
            if not clusters.ready:
                raise self._too_few(group, clusters)
            for kind in group:
                head = self.head(kind)
                head.prototypes.copy_(clusters.centroids())
                cosines = torch.cat(self.samples[kind])[-SAMPLE:] @ head.prototypes.T  # [T, K]
                head.temperature.fill_(temperature_for(cosines, self.entropy))

    def report(self) -> str:
        """What came of it, in a few words."""
        told = [f"{WORDS[kind]} {float(self.head(kind).temperature):.3g}" for kind in self.kinds]
        return f"temperature of {', of '.join(told)}"

    def _too_few(self, group: list[str], clusters: SphericalKMeans) -> UserError:
        tokens = " and ".join(WORDS[kind] for kind in group)
        return UserError(
            f"teacher.heads.steps: {self.seen} batches gave {clusters.seeded:,} {tokens} for {len(clusters.sums):,} "
            f"prototypes. Raise teacher.heads.steps or lower heads.prototypes."
        )
