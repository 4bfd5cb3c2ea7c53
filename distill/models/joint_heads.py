"""The heads of one model: prototypes for CLS and patches (one shared head when tied), or feature projections."""

from __future__ import annotations

from torch import Tensor, nn

from distill.config.schema import HeadsConfig
from distill.models.heads import PrototypeHead


class Heads(nn.Module):
    """Prototype heads h of Eq. 1 to 3 for a trunk of `width`, and, for feature targets, linear maps to the teacher's.

    Args:
        width: the trunk's width.
        cfg: sizes; `tied` uses one head for CLS and patches.
        feature_width: the teacher's width when patches regress its features (then `features` exists), else None.
        cls_width: the same for CLS tokens (then `cls_features` exists).
    """

    def __init__(self, width: int, cfg: HeadsConfig, feature_width: int | None = None, cls_width: int | None = None):
        super().__init__()
        self.shared = PrototypeHead(width, cfg)
        self.own_patch = None if cfg.tied else PrototypeHead(width, cfg)
        self.features = None if feature_width is None else nn.Linear(width, feature_width)
        self.cls_features = None if cls_width is None else nn.Linear(width, cls_width)

    @property
    def cls(self) -> PrototypeHead:
        return self.shared

    @property
    def patch(self) -> PrototypeHead:
        return self.shared if self.own_patch is None else self.own_patch

    def predict_features(self, patches: Tensor) -> Tensor:
        """Student patches `[B, N, D]` in the teacher's feature space `[B, N, D_teacher]`."""
        assert self.features is not None, "heads were built without a feature projection"
        return self.features(patches)

    def predict_cls_features(self, cls: Tensor) -> Tensor:
        """Student CLS tokens `[..., D]` in the teacher's feature space `[..., D_teacher]`."""
        assert self.cls_features is not None, "heads were built without a feature projection of CLS"
        return self.cls_features(cls)
