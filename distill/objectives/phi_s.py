"""PHI-S normalisation of regressed features (arXiv 2410.01680): all channels vary alike, distances keep their ratios.

Standardising each channel blows up channels that carry little. PHI-S rotates into the principal axes U, where channels
are uncorrelated with variances l, and on by a Hadamard matrix H, whose entries are all +-1/sqrt(D): each new channel is
a signed mean of all axes and has the variance mean(l). One scale then makes it 1:

    y = H U^T (x - mean) / sqrt(mean(l))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.objectives.distributed import from_first_rank
from distill.objectives.moments import Moments
from distill.objectives.precision import full


class PhiSNorm(nn.Module):
    """The fixed map of the module's text. Buffers `mean` `[D]` and `rotation` `[D, D]`, orthogonal; `scale`, a scalar.

    `accumulate` features, then `settle` once; before that it cannot be applied. Raises UserError for a width of which
    no Hadamard matrix can be built.
    """

    mean: Tensor
    rotation: Tensor
    scale: Tensor
    eps = 1e-12

    def __init__(self, width: int):
        super().__init__()
        hadamard(width)  # raises now rather than after a pass over the data
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("rotation", torch.zeros(width, width))
        self.register_buffer("scale", torch.zeros(()))
        self.moments: Moments | None = Moments(width)

    def accumulate(self, features: Tensor) -> None:
        """Adds features `[..., D]` of this rank to what `settle` measures."""
        assert self.moments is not None, "already settled"
        self.moments.add(features)

    @torch.no_grad()
    def settle(self) -> None:
        """Works out the map from everything accumulated on all ranks, and takes rank 0's.

        Axes are eigenvectors: their signs, and those of equal variances, are up to the library and the machine.
        """
        assert self.moments is not None, "already settled"
        variances, axes = torch.linalg.eigh(self.moments.covariance().cpu())  # [D], [D, D] axes are columns
        mean_variance = variances.clamp_min(0).mean().clamp_min(self.eps)
        self.mean.copy_(self.moments.mean())
        self.rotation.copy_(hadamard(len(variances)).double() @ axes.T)
        self.scale.copy_(mean_variance.rsqrt())
        for part in (self.mean, self.rotation, self.scale):
            part.copy_(from_first_rank(part))
        self.moments = None

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Normalised features, same shape, fp32, no gradient."""
        with torch.autocast(features.device.type, enabled=False):
            return (full(features.detach()) - self.mean) @ self.rotation.T * self.scale


def hadamard(order: int) -> Tensor:
    """An orthogonal `[order, order]` matrix with all entries +-1/sqrt(order), fp32.

    Built from Paley's two constructions, doubled as Sylvester does: every power of 2 and every width of a vision
    transformer in use (192, 384, 768, 1152, 1280, 1408, 1536, ...). Raises UserError for other orders.
    """
    core, doublings = order, 0
    while core > 2 and core % 2 == 0 and _paley(core) is None:
        core, doublings = core // 2, doublings + 1
    matrix = _paley(core) if core > 2 else torch.ones(1, 1) if core == 1 else torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    if matrix is None:
        raise UserError(
            f"objective.feature_norm=phi_s needs a Hadamard matrix of the teacher's width, and none of order {order} "
            f"is known here. Set objective.feature_norm=standard."
        )
    for _ in range(doublings):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / order**0.5


def _paley(order: int) -> Tensor | None:
    """Paley's first construction for order q + 1, q = 3 mod 4, else his second for 2 (q + 1), q = 1 mod 4; q prime."""
    if order % 4 == 0 and _is_prime(order - 1):
        residues = _residues(order - 1)  # skew-symmetric
        skew = torch.zeros(order, order)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, residues
        return skew + torch.eye(order)
    half = order // 2
    if order % 4 == 0 and half % 4 == 2 and _is_prime(half - 1):
        conference = torch.zeros(half, half)
        conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _residues(half - 1)  # symmetric
        plus, minus = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        return torch.kron(conference, plus) + torch.kron(torch.eye(half), minus)
    return None


def _residues(q: int) -> Tensor:
    """Jacobsthal's matrix `[q, q]`: 1 where i - j is a square modulo the prime q, 0 on the diagonal, else -1."""
    squares = {i * i % q for i in range(1, q)}
    sign = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    index = torch.arange(q)
    return sign[(index[:, None] - index[None, :]) % q]


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % i for i in range(2, int(n**0.5) + 1))
