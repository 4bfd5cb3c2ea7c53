"""Every collective objective on one rank's part of a fixed global batch, with gradients averaged over ranks.

`python two_ranks.py RANK RANKS STORE OUT` joins a gloo group through the file STORE and saves `compute` to OUT.
"""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from distill.objectives.cls_distillation import cls_distillation_loss
from distill.objectives.contrastive import contrastive_loss
from distill.objectives.distributed import all_gather_with_grad, all_reduce_max, all_reduce_mean, all_reduce_sum
from distill.objectives.patch_distillation import FeatureNorm, feature_patch_loss, prototype_patch_loss
from distill.objectives.prototypes import Center, PrototypeTargets, prototype_usage, sinkhorn

IMAGES, PATCHES, WIDTH, PROTOTYPES = 4, 6, 5, 7
# Unequal over images, and over two ranks: 6 and 2 masked patches.
MASK = torch.tensor([[1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]], dtype=torch.bool)


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

    record("softmax", lambda w, t: contrastive_loss(images[own] @ w, texts[own] @ w, t), 0.3)
    record("sigmoid", lambda w, t, b: contrastive_loss(images[own] @ w, texts[own] @ w, t, "sigmoid", b), 0.3, -1.0)
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

    balanced = sinkhorn(logits, 0.1)
    out["sinkhorn"] = all_gather_with_grad(balanced)
    out["usage"] = prototype_usage(targets.probs())
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
    out["sum"] = all_reduce_sum(images[own].sum(dim=0))
    out["max"] = all_reduce_max(images[own].amax(dim=0))
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, ranks = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=ranks)
    torch.save(compute(rank, ranks), sys.argv[4])
    dist.destroy_process_group()
