"""Spherical k-means over a stream of unit vectors, on all ranks together."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.objectives.distributed import all_gather_with_grad, all_reduce_sum, rank, world_size

MEMORY = 100  # vectors that a centroid remembers: newer ones replace older ones, which were assigned less well
LOOK = 30  # vectors a centroid, on average, between two looks for dead ones
DEAD = 0.1  # a centroid is dead when it got less than this share of the average
CHUNK_ELEMENTS = 1 << 24  # of the matrix of cosines held at once


class SphericalKMeans:
    """Mini-batch spherical k-means: K centroids of length 1, each the direction of the sum of the vectors it won.

    The first vectors seen, a random draw of each batch, are the seeds. A vector goes to the centroid of the largest
    cosine. Dead centroids start again at random vectors of the batch at hand. Every rank must call `add` with as many
    vectors; all then hold the same centroids. Random draws come from `seed` alone.
    """

    def __init__(self, prototypes: int, width: int, seed: int):
        self.sums = torch.zeros(prototypes, width)  # [K, d]
        self.counts = torch.zeros(prototypes)  # [K] vectors in each sum, at most MEMORY
        self.recent = torch.zeros(prototypes)  # [K] vectors won since the last look for dead ones
        self.seeded = 0
        self.reseeded = 0  # how often a dead centroid started again
        self.random = torch.Generator().manual_seed(seed + 7919 * rank())

    @property
    def ready(self) -> bool:
        """Whether there have been enough vectors for K seeds."""
        return self.seeded == len(self.sums)

    def centroids(self) -> Tensor:
        """`[K, d]`, each of length 1."""
        return F.normalize(self.sums, dim=-1)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Takes in this rank's unit vectors `[T, d]`."""
        if self.sums.device != x.device:
            self.sums, self.counts, self.recent = (t.to(x.device) for t in (self.sums, self.counts, self.recent))
        if not self.ready:
            self._seed(x)
        if not self.ready:
            return
        sums, won = self._assign(x)
        self.sums += sums
        self.counts += won
        self.recent += won
        fade = (MEMORY / self.counts).clamp_max(1)  # [K]
        self.sums *= fade[:, None]
        self.counts *= fade
        if self.recent.sum() >= LOOK * len(self.recent):
            self._reseed(x)

    def _seed(self, x: Tensor) -> None:
        fresh = self._draw(x, len(self.sums) - self.seeded)
        rows = slice(self.seeded, self.seeded + len(fresh))
        self.sums[rows], self.counts[rows] = fresh, 1
        self.seeded += len(fresh)

    def _assign(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums `[K, d]` and numbers `[K]` of the vectors that each centroid wins, over all ranks."""
        centroids = self.centroids()
        total = x.new_zeros(len(centroids), x.shape[1] + 1)  # [K, d + 1] sums, then numbers
        for part in x.split(max(1, CHUNK_ELEMENTS // len(centroids))):
            best = (part @ centroids.T).argmax(dim=-1)  # [t]
            won = x.new_zeros(len(part), len(centroids)).scatter_(1, best[:, None], 1.0)  # [t, K]
            total += won.T @ torch.cat([part, part.new_ones(len(part), 1)], dim=1)  # a product is the same every time
        total = all_reduce_sum(total)
        return total[:, :-1], total[:, -1]

    def _reseed(self, x: Tensor) -> None:
        dead = (self.recent < DEAD * self.recent.mean()).nonzero().flatten()
        if len(dead):
            fresh = self._draw(x, len(dead))
            dead = dead[: len(fresh)]
            self.sums[dead], self.counts[dead] = fresh, 1
            self.reseeded += len(dead)
        self.recent.zero_()

    def _draw(self, x: Tensor, number: int) -> Tensor:
        """At most `number` different vectors of the batch, at random and the same on all ranks."""
        each = min(math.ceil(number / world_size()), len(x))
        rows = torch.randperm(len(x), generator=self.random)[:each].to(x.device)
        return all_gather_with_grad(x[rows])[:number]
