"""Prototype targets: centring, sharpening, Sinkhorn-Knopp, and how many prototypes are in use.

A head maps an embedding to a unit bottleneck vector x `[d]`; its logits over K prototypes are the cosines with the
unit directions `[K, d]`. The teacher's logits become a target distribution over prototypes; without balancing, all
tokens would end at one prototype (collapse). The paper balances by an average centre and sharpening; Sinkhorn-Knopp
is the alternative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distill.objectives.distributed import all_reduce_max, all_reduce_sum
from distill.objectives.precision import full, matmul
from distill.objectives.scratch import Scratch

CHUNK_BYTES = {"cpu": 1 << 19, "cuda": 1 << 28}  # one chunk's matrix: fits a core's cache; keeps the GPU busy
CHUNK_ROWS = 256  # at least, or adding up the gradient of the directions costs more than it saves


def chunk_rows(directions: Tensor) -> int:
    """How many tokens at a time meet K prototypes `[K, d]`."""
    budget = CHUNK_BYTES["cpu" if directions.device.type == "cpu" else "cuda"]
    return max(CHUNK_ROWS, budget // (4 * directions.shape[0]))


def mean_logits(bottleneck: Tensor, directions: Tensor) -> Tensor:
    """The mean over all tokens of the prototype logits, fp32 `[K]`.

    `bottleneck` `[..., d]`, `directions` `[K, d]`. Logits are linear in the bottleneck, so their mean is the logits
    of the mean vector: no tokens x K matrix is made.
    """
    with torch.autocast(bottleneck.device.type, enabled=False):
        return full(directions.detach()) @ full(bottleneck.detach()).flatten(0, -2).mean(dim=0)


class Center(nn.Module):
    """The running mean of the teacher's prototype logits: buffer `center`, float32 `[K]`, in the state dict.

    It moves only when `tick` is called, once per optimiser step; `accumulate` collects the micro-batches before that.
    CLS and patches keep separate centres; the patch centre's mean is over all patches of the global batch.
    """

    center: Tensor
    pending: Tensor

    def __init__(self, prototypes: int):
        super().__init__()
        self.register_buffer("center", torch.zeros(prototypes))
        self.register_buffer("pending", torch.zeros(prototypes + 1), persistent=False)  # [K] sums, then the count
        self.waiting = False  # something was accumulated since the last tick

    def probs(self, logits: Tensor, temperature: float) -> Tensor:
        """Targets `softmax((logits - center) / temperature)` for `logits` `[..., K]`; same shape, no gradient."""
        return torch.softmax((full(logits.detach()) - self.center) / temperature, dim=-1)

    @torch.no_grad()
    def accumulate(self, mean_logits: Tensor, count: float = 1) -> None:
        """Adds a micro-batch: its mean logits `[K]` and how many tokens (or images) that mean is over."""
        self.pending[:-1] += mean_logits.detach() * count
        self.pending[-1] += count
        self.waiting = True

    @torch.no_grad()
    def tick(self, momentum: float) -> None:
        """`center = momentum * center + (1 - momentum) * mean`, the mean over everything accumulated on all ranks.

        Does nothing when nothing was accumulated since the last tick. Collective: ranks accumulate and tick alike.
        """
        if not self.waiting:
            return
        total = all_reduce_sum(self.pending)
        self.center.lerp_(total[:-1] / total[-1], 1 - momentum)
        self.pending.zero_()
        self.waiting = False

    def update(self, mean_logits: Tensor, momentum: float) -> None:
        """`accumulate` and `tick` in one, for a step of a single micro-batch."""
        self.accumulate(mean_logits)
        self.tick(momentum)


@dataclass(frozen=True)
class PrototypeTargets:
    """Centred and sharpened targets, `softmax((x directions^T - center) / temperature)`, made chunk by chunk."""

    bottleneck: Tensor  # [..., d] the teacher's unit vectors
    directions: Tensor  # [K, d] the teacher's unit prototypes
    center: Tensor  # [K]
    temperature: float | Tensor  # a scalar

    def select(self, rows: Tensor) -> PrototypeTargets:
        """The targets of the tokens `rows` (int64 `[T]`, counted in raster order)."""
        return replace(self, bottleneck=self.bottleneck.flatten(0, -2)[rows])

    def chunk(self, rows: slice, scratch: Scratch | None = None) -> Tensor:
        """`[t, K]`: the distributions of the tokens in `rows`, counted in raster order; fp32.

        With `scratch` they lie in its `target`, and its `logits` are overwritten.
        """
        x = self.bottleneck.detach().flatten(0, -2)[rows] / self.temperature  # [t, d]
        size = (len(x), len(self.directions))
        places = [scratch.take(name, size, like=full(x)) if scratch else None for name in ("logits", "target")]
        logits = matmul(x, self.directions.T, out=places[0])  # [t, K]
        return torch.softmax(logits.sub_(self.center / self.temperature), dim=-1, out=places[1])

    def probs(self) -> Tensor:
        """`[..., K]`: all of them."""
        return self.chunk(slice(None)).unflatten(0, self.bottleneck.shape[:-1])


@dataclass(frozen=True)
class ReadyTargets:
    """Targets that are already distributions, such as Sinkhorn-Knopp's."""

    probs: Tensor  # [..., K], rows sum to 1

    def select(self, rows: Tensor) -> ReadyTargets:
        """The targets of the tokens `rows` (int64 `[T]`, counted in raster order)."""
        return replace(self, probs=self.probs.flatten(0, -2)[rows])

    def chunk(self, rows: slice, scratch: Scratch | None = None) -> Tensor:
        """As `PrototypeTargets.chunk`; needs no `scratch`."""
        return full(self.probs.detach().flatten(0, -2)[rows])


TokenTargets = PrototypeTargets | ReadyTargets


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Targets that use every prototype equally often: Sinkhorn-Knopp (arXiv 2006.09882) over the tokens of all ranks.

    `logits` `[..., K]`; returns the same shape in fp32, rows sum to 1. Each iteration scales the prototypes to equal
    total mass and then the tokens to mass 1, so column sums are only near (tokens / K). `iterations` 0 is a plain
    softmax.
    """
    z = full(logits).flatten(0, -2) / temperature  # [T, K]
    peak = z.amax(dim=1)  # [T]
    kernel = (z - peak[:, None]).exp_()  # [T, K], every row's largest entry is 1
    token = (peak - all_reduce_max(peak.max())).exp_()  # [T] scaling of each token: undoes the shift by its own peak
    prototype = torch.ones_like(kernel[0])  # [K] scaling of each prototype
    tiny = torch.finfo(z.dtype).tiny
    with torch.autocast(z.device.type, enabled=False):  # it would round the products
        for _ in range(iterations):
            mass = all_reduce_sum(token @ kernel)  # [K]
            prototype = 1 / (mass.clamp_min(tiny) * len(mass))
            token = 1 / (kernel @ prototype).clamp_min(tiny)  # [T]
    if iterations == 0:
        token = 1 / kernel.sum(dim=1)
    return kernel.mul_(prototype).mul_(token[:, None]).view(logits.shape)


@torch.no_grad()
def sinkhorn_center(
    bottleneck: Tensor, directions: Tensor, temperature: float, iterations: int = 3, chunk: int | None = None
) -> Tensor:
    """The centre `[K]` that makes `PrototypeTargets` of what `sinkhorn` makes of the same tokens' logits.

    Its last scaling of the tokens is a softmax of `logits / temperature + log(scaling of the prototypes)`. So the K
    scalings are all that is needed: with `center = -temperature log(scaling)` the targets can be made chunk by chunk.
    `bottleneck` `[..., d]`, `directions` `[K, d]`, `chunk`: tokens at a time (None: by memory). Every iteration makes
    the logits anew, unless one chunk holds them all.
    """
    logits = _Logits(bottleneck, directions, temperature, chunk or chunk_rows(directions))
    tiny = torch.finfo(torch.float32).tiny
    prototype = torch.ones_like(full(directions[:, 0]))  # [K] scaling of each prototype
    for i in range(iterations):
        mass = _first_mass(logits) if i == 0 else _mass(logits, prototype, tiny)  # [K]
        prototype = 1 / (mass.clamp_min(tiny) * len(mass))
    return -temperature * prototype.log()


class _Logits:
    """Chunks of `x directions^T / temperature`, `[t, K]`; kept when there is only one."""

    def __init__(self, bottleneck: Tensor, directions: Tensor, temperature: float, chunk: int):
        self.x, self.directions = bottleneck.flatten(0, -2) / temperature, directions  # [T, d], [K, d]
        self.parts = self.x.split(chunk)
        self.only = self._of(self.x) if len(self.parts) == 1 else None

    def _of(self, part: Tensor) -> Tensor:
        return matmul(part, self.directions.T)

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self.only]) if self.only is not None else map(self._of, self.parts)


def _first_mass(logits: _Logits) -> Tensor:
    """`sum over all tokens of exp(z - largest z of all)`, `[K]`; the largest is found on the way."""
    peak = logits.x.new_full((), -math.inf, dtype=torch.float32)
    mass = torch.zeros_like(full(logits.directions[:, 0]))  # [K]
    for z in logits:  # [t, K]
        higher = torch.maximum(peak, z.max())
        mass = mass * (peak - higher).exp() + (z - higher).exp_().sum(dim=0)
        peak = higher
    return all_reduce_sum(mass * (peak - all_reduce_max(peak)).exp())


def _mass(logits: _Logits, prototype: Tensor, tiny: float) -> Tensor:
    """The mass of each prototype `[K]` after the tokens were scaled to mass 1."""
    mass = torch.zeros_like(prototype)
    for z in logits:  # [t, K]
        kernel = (z - z.amax(dim=1, keepdim=True)).exp_()
        with torch.autocast(z.device.type, enabled=False):  # it would round the products
            token = 1 / (kernel @ prototype).clamp_min(tiny)  # [t]
            mass += token @ kernel
    return all_reduce_sum(mass)
