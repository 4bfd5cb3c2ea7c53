"""Every collective objective on one rank's part of a fixed global batch, with gradients averaged over ranks.

`python ranks.py FOLDER RANKS...` does so in gloo groups of RANKS processes and saves what rank r of n computes to
FOLDER/n_r.pt. The processes are forked: torch is imported once.
"""

import multiprocessing
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from distill.objectives.cls_distillation import cls_distillation_loss, feature_cls_loss
from distill.objectives.contrastive import contrastive_loss, contrastive_loss_plain
from distill.objectives.distributed import (
    all_gather_with_grad,
    all_reduce_max,
    all_reduce_mean,
    all_reduce_sum,
    from_first_rank,
)
from distill.objectives.moments import Moments
from distill.objectives.patch_distillation import FeatureNorm, feature_patch_loss, prototype_patch_loss
from distill.objectives.phi_s import PhiSNorm
from distill.objectives.prototypes import Center, PrototypeTargets, sinkhorn
from teachers.heads.calibration import mean_entropy
from teachers.heads.kmeans import SphericalKMeans

IMAGES, PATCHES, WIDTH, PROTOTYPES = 6, 6, 5, 7
# Masked patches of each image: unequal over images, over two ranks (6 and 3) and over three (6, 2, 1).
MASK = torch.arange(PATCHES) < torch.tensor([5, 1, 0, 2, 0, 1])[:, None]


def compute(rank: int, ranks: int) -> dict[str, Tensor]:
    """Global values, and gradients of one shared weight averaged over ranks as data-parallel training does."""
    generator = torch.Generator().manual_seed(0)

    def whole(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)

    images, texts = whole(IMAGES, WIDTH), whole(IMAGES, WIDTH)
    patches, teacher = whole(IMAGES, PATCHES, WIDTH), whole(IMAGES, PATCHES, WIDTH)
    directions, teacher_directions, center = whole(PROTOTYPES, WIDTH), whole(PROTOTYPES, WIDTH), whole(PROTOTYPES)
    weight = torch.eye(WIDTH, dtype=torch.float64) + 0.3 * whole(WIDTH, WIDTH)
    own = slice(rank * IMAGES // ranks, (rank + 1) * IMAGES // ranks)
    out: dict[str, Tensor] = {}

    def record(name: str, loss, *scalars: float) -> None:
        """`loss(weight, *scalars)` -> this rank's share; stores the mean over ranks of value and gradients."""
        inputs = [weight.clone().requires_grad_(), *(torch.tensor(s).double().requires_grad_() for s in scalars)]
        value = loss(*inputs)
        value.backward()
        out[name] = all_reduce_mean(value)
        for i, x in enumerate(inputs):
            out[f"{name}/grad{i}"] = all_reduce_mean(x.grad)

    for name, contrast in (("", contrastive_loss), ("plain ", contrastive_loss_plain)):

        def contrasted(w, t, loss, bias=None, contrast=contrast, **parts):
            return contrast(images[own] @ w, texts[own] @ w, t, loss, bias, **parts)

        record(f"{name}softmax", lambda w, t, c=contrasted: c(w, t, "softmax"), 0.3)
        record(f"{name}sigmoid", lambda w, t, b, c=contrasted: c(w, t, "sigmoid", b), 0.3, -1.0)
    for loss in ("softmax", "sigmoid"):
        one_by_one = contrastive_loss(images[own] @ weight, texts[own] @ weight, 0.3, loss, rows=1)
        out[f"{loss} without gradients"] = all_reduce_mean(one_by_one)
    targets = PrototypeTargets(teacher[own], teacher_directions, center, 0.1)
    for tokens in ("masked", "visible", "all"):
        parts = {}

        def patch(w, tokens=tokens, parts=parts):
            result = prototype_patch_loss(patches[own] @ w, directions, targets, MASK[own], tokens, 0.2)
            parts.update(masked=result.masked, visible=result.visible)
            return result.total

        record(f"patch {tokens}", patch)
        out |= {f"patch {tokens}/{name}": value for name, value in parts.items()}
        record(
            f"feature {tokens}",
            lambda w, tokens=tokens: feature_patch_loss(patches[own] @ w, teacher[own], MASK[own], tokens).total,
        )
    logits = patches[own] @ directions.T
    record("cls", lambda w: cls_distillation_loss(patches[own] @ w @ directions.T, targets.probs()[:, 0], 0.2))
    record("feature cls", lambda w: feature_cls_loss(patches[own] @ w, teacher[own][:, 0]))

    balanced = sinkhorn(logits, 0.1)
    out["sinkhorn"] = all_gather_with_grad(balanced)
    moving = Center(PROTOTYPES).double()
    masked = logits[MASK[own]]  # ranks average over different numbers of tokens
    moving.accumulate(masked.mean(dim=0), len(masked))
    moving.tick(0.9)
    out["center"] = moving.center
    norm = FeatureNorm(WIDTH).double()
    norm.accumulate(3 + 2 * teacher[own])
    out["first norm"] = all_gather_with_grad(norm(3 + 2 * teacher[own]))
    norm.tick(0.9)
    out |= {"norm mean": norm.mean, "norm var": norm.var}
    clusters = SphericalKMeans(3, WIDTH, seed=0)
    clusters.sums, clusters.counts, clusters.recent = directions[:3].clone(), *torch.ones(2, 3).double()
    clusters.seeded = 3
    clusters.add(patches[own].flatten(0, 1))
    out |= {"clusters": clusters.centroids(), "clusters won": clusters.counts}
    out["clusters drawn again"] = torch.tensor(clusters._draw(patches[own].flatten(0, 1), 5).shape).double()
    out["entropy"] = torch.tensor(mean_entropy(patches[own].flatten(0, 1) @ directions.T, 0.3))
    moments = Moments(WIDTH)
    moments.add(teacher[own])
    out |= {"moments mean": moments.mean(), "moments covariance": moments.covariance()}
    features = teacher[own].flatten(0, 1)[:, :4]  # a width that has a Hadamard matrix
    out |= {f"phi_s {name}": value for name, value in _phi_s(features, flip=rank > 0).items()}
    out["first"] = from_first_rank(torch.full((2,), 7.0 + rank))
    out["sum"] = all_reduce_sum(images[own].sum(dim=0))
    out["max"] = all_reduce_max(images[own].amax(dim=0))
    return out


def _phi_s(features: Tensor, flip: bool) -> dict[str, Tensor]:
    """The settled map of `[T, 4]`; `flip`: eigenvectors come out with other signs, as on another machine."""
    norm = PhiSNorm(4).double()
    norm.accumulate(features)
    eigh = torch.linalg.eigh
    if flip:
        torch.linalg.eigh = lambda x: (eigh(x)[0], -eigh(x)[1])
    try:
        norm.settle()
    finally:
        torch.linalg.eigh = eigh
    return norm.state_dict()


def work(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store_{ranks}", rank=rank, world_size=ranks)
    torch.save(compute(rank, ranks), f"{folder}/{ranks}_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    for ranks in map(int, sys.argv[2:]):
        group = [fork.Process(target=work, args=(rank, ranks, sys.argv[1])) for rank in range(ranks)]
        for process in group:
            process.start()
        for process in group:
            process.join()
        if any(process.exitcode for process in group):
            sys.exit(1)
