"""`teacher.heads.kind: trained`: heads learn by self-distillation on the frozen trunk, then are frozen too.

A head follows its own moving average, as in pretraining with head-only EMA, but on features that do not move: the
average's balanced and sharpened targets (centre or Sinkhorn-Knopp, at the recipe's temperatures) for the same tokens.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from distill.config.schema import Config, ObjectiveConfig
from distill.models.vision import ImageOutput
from distill.objectives.cls_distillation import cls_distillation_loss
from distill.objectives.distributed import all_reduce_mean
from distill.objectives.patch_distillation import prototype_patch_loss
from teachers import average
from teachers.targets import FeatureTargets, TargetHeads

RATE = 1e-3  # AdamW's
MOMENTUM = 0.99  # of the average: a short training needs a faster one than pretraining


class HeadTraining:
    """Trains `heads` on a stream of the teacher's clean outputs: `add` each part of each batch, then `finish`.

    As in training, a batch comes in `train.accumulate` parts, and weights, average and centres move once, after the
    last of them.
    """

    def __init__(self, heads: TargetHeads, cfg: Config):
        assert heads.heads is not None
        self.heads, self.averaged = heads, heads.heads
        self.objective = prototypes_alone(cfg.objective)
        self.center_momentum = cfg.objective.center_momentum
        self.learner = copy.deepcopy(heads.heads).train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), lr=RATE)
        self.parts, self.seen = cfg.train.accumulate, 0
        self.loss = torch.zeros(())  # of the newest part

    def add(self, output: ImageOutput) -> None:
        """Takes in a part of a batch: cls `[B, C, D]`, of which the first token counts, and patches `[B, N, D]`."""
        clean = ImageOutput(output.cls.float(), output.patches.float())
        with torch.enable_grad():
            self.loss = self._loss(clean)
            (self.loss / self.parts).backward()
        self.seen += 1
        if self.seen % self.parts == 0:
            self._step()

    def _step(self) -> None:
        for parameter in self.learner.parameters():
            if parameter.grad is not None:
                parameter.grad = all_reduce_mean(parameter.grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        average.follow(self.averaged, self.learner, MOMENTUM)
        self.heads.tick(self.center_momentum)

    def finish(self) -> None:
        """Nothing is left to do: the average is the head."""

    def report(self) -> str:
        """What came of it, in a few words."""
        return f"loss {float(self.loss.detach()):.3f}"

    def _loss(self, clean: ImageOutput) -> Tensor:
        objective, learner = self.objective, self.learner
        targets = self.heads.targets(clean, objective, objective.patch.teacher_temperature.end)
        losses = []
        if targets.cls is not None:
            assert isinstance(targets.cls, Tensor)
            logits = learner.cls(clean.cls[:, :1])  # [B, 1, K]
            losses.append(cls_distillation_loss(logits, targets.cls, objective.cls.student_temperature))
        if targets.patch is not None:
            assert not isinstance(targets.patch, FeatureTargets)
            x = learner.patch.bottleneck(clean.patches)  # [B, N, d]
            nothing = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)  # [B, N] no token is masked
            temperature = objective.patch.student_temperature
            loss = prototype_patch_loss(x, learner.patch.directions(), targets.patch, nothing, "all", temperature)
            losses.append(loss.total)
        return torch.stack(losses).sum()


def prototypes_alone(objective: ObjectiveConfig) -> ObjectiveConfig:
    """The objective without the losses that regress features."""
    cls, patch = objective.cls, objective.patch
    return dataclasses.replace(
        objective,
        cls=dataclasses.replace(cls, weight=0.0 if cls.target == "features" else cls.weight),
        patch=dataclasses.replace(patch, weight=0.0 if patch.target == "features" else patch.weight),
    )
