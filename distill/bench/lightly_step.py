"""The same training step put together from lightly's public blocks, as a competent user of it would: the reference.

lightly has the masked vision transformer, DINO heads, the DINO and iBOT++ losses and momentum updates. It has no text
tower and no image-text loss: the text tower is ours, the loss is CLIP's in two lines. The teacher is a momentum copy of
trunk and head, as in lightly's own examples. Every view and every caption field is a pass of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config.schema import Config
from distill.errors import UserError
from distill.models.vision import NORM_EPS
from distill.training.learner import Learner
from distill.training.optim import NO_DECAY_LEAVES
from distill.views.batch import Batch

MOMENTUM = 0.994


def has_lightly() -> bool:
    """Is the package of the reference installed (extra `bench`)?"""
    return find_spec("lightly") is not None


class LightlyStep(nn.Module):
    """Student, momentum teacher and losses of one image-text pair, of the shape of `ours` and with its weights."""

    def __init__(self, cfg: Config, ours: Learner):
        super().__init__()
        try:
            from lightly.loss import DINOLoss
            from lightly.loss.ibot_loss import IBOTPlusPlusPatchLoss
            from lightly.models.utils import update_momentum
        except ImportError as error:
            raise UserError("This benchmark needs the package lightly: pip install 'everypatch[bench]'.") from error
        self.update_momentum = update_momentum
        self.cfg = cfg
        self.trunk: Any = _trunk(cfg, ours)
        self.head = _head(cfg, ours)
        self.text = copy.deepcopy(ours.model.text)
        self.log_temperature = nn.Parameter(ours.model.log_temperature.detach().clone())
        self.teacher_trunk: Any = copy.deepcopy(self.trunk).requires_grad_(False)
        self.teacher_head = _head(cfg, ours).requires_grad_(False)  # weight_norm's module cannot be copied
        prototypes, objective = cfg.heads.prototypes, cfg.objective
        momentum = objective.center_momentum
        self.cls_loss = DINOLoss(prototypes, student_temp=objective.cls.student_temperature, center_momentum=momentum)
        self.patch_loss = IBOTPlusPlusPatchLoss(
            prototypes, student_temp=objective.patch.student_temperature, center_momentum=momentum
        )

    def forward(self, batch: Batch, patch_temperature: float) -> dict[str, Tensor]:
        """The three losses, unweighted, of a batch."""
        images = batch.images()
        prefix = self.trunk.vit.num_prefix_tokens
        with torch.no_grad():
            seen = self.teacher_trunk.encode(images)  # [B, C + N, D]
            teacher_cls, teacher_patches = self.teacher_head(seen[:, 0]), self.teacher_head(seen[:, prefix:])
        clean = self.trunk.encode(images)
        masked = self.trunk.encode(images, mask=F.pad(batch.mask, (prefix, 0)))
        crops = [self.trunk.encode(crop.float() / 255)[:, 0] for crop in batch.local.unbind(1)]  # M times [B, D]
        objective = self.cfg.objective
        # lightly leaves out the term of view 0 with view 0, so the student's global view stands there.
        views = [self.head(cls) for cls in (clean[:, 0], *crops)]
        return {
            "contrastive": self._contrastive(batch, clean),
            "cls": self.cls_loss([teacher_cls], views, teacher_temp=objective.cls.teacher_temperature),
            "patch": self.patch_loss(teacher_patches, self.head(masked[:, prefix:]), teacher_temp=patch_temperature),
        }

    def _contrastive(self, batch: Batch, clean: Tensor) -> Tensor:
        losses = []
        for c in range(batch.tokens.shape[1]):
            image = F.normalize(clean[:, c], dim=-1)
            text = F.normalize(self.text(batch.tokens[:, c], batch.valid[:, c]), dim=-1)
            logits = image @ text.T / self.log_temperature.exp()  # [B, B]
            labels = torch.arange(len(image), device=image.device)
            losses.append((F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2)
        return torch.stack(losses).mean()

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        objective = self.cfg.objective
        weights = {name: getattr(objective, name).weight for name in losses}
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def follow(self) -> None:
        self.update_momentum(self.trunk, self.teacher_trunk, MOMENTUM)
        self.update_momentum(self.head, self.teacher_head, MOMENTUM)


def prepare_step(model: LightlyStep, batch: Batch) -> Callable[[], Tensor]:
    """A call that takes one training step and returns its loss: AdamW, clipped, momentum updates after it."""
    cfg = model.cfg
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decays = lambda n, p: p.ndim > 1 and n.rpartition(".")[2] not in {*NO_DECAY_LEAVES, "pos_embed"}  # noqa: E731
    groups = [
        {"params": [p for n, p in trained if decays(n, p)], "weight_decay": cfg.optim.weight_decay},
        {"params": [p for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=cfg.optim.lr, betas=(cfg.optim.betas[0], cfg.optim.betas[1]))
    temperature = cfg.objective.patch.teacher_temperature.start

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.train.precision == "bf16"):
            loss = model.weighted(model(batch, temperature))
        loss.backward()
        nn.utils.clip_grad_norm_([p for _, p in trained], cfg.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        model.follow()
        return loss.detach()

    return step


def _trunk(cfg: Config, ours: Learner) -> Any:
    """lightly's wrapper around timm's transformer, filled with our weights."""
    from functools import partial

    from lightly.models.modules import MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    tower = ours.model.image
    activation = partial(nn.GELU, approximate="tanh" if tower.gelu == "tanh" else "none")
    vit: Any = VisionTransformer(
        img_size=tower.position_grid * tower.patch,
        patch_size=tower.patch,
        embed_dim=tower.width,
        depth=tower.depth,
        num_heads=tower.arch.heads,
        mlp_ratio=tower.arch.mlp / tower.width,
        num_classes=0,
        global_pool="",
        reg_tokens=tower.cls_tokens - 1,
        no_embed_class=True,
        dynamic_img_size=True,
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
        act_layer=activation,
    )
    trunk = MaskedVisionTransformerTIMM(vit, weight_initialization="skip", pos_embed_initialization="skip")
    with torch.no_grad():
        vit.load_state_dict(tower.trunk.state_dict(), strict=False)
        vit.patch_embed.proj.load_state_dict(tower.embed.proj.state_dict())
        vit.pos_embed.copy_(tower.embed.positions.flatten(0, 1)[None])
        trunk.mask_token.copy_(tower.embed.mask_token)
    vit.pos_embed.requires_grad_(True)
    return trunk


def _head(cfg: Config, ours: Learner) -> nn.Module:
    """lightly's DINO head, filled with our weights."""
    from lightly.models.modules.heads import DINOProjectionHead

    assert ours.heads is not None
    sizes, own = cfg.heads, ours.heads.shared
    head = DINOProjectionHead(ours.model.image.width, sizes.hidden, sizes.bottleneck, sizes.prototypes)
    with torch.no_grad():
        linears = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
        for linear, mine in zip(linears, [layer for layer in own.mlp if isinstance(layer, nn.Linear)]):
            linear.load_state_dict(mine.state_dict())
        head.last_layer.weight_v.copy_(own.prototypes)
    return head
