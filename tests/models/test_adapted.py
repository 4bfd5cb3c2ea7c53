from __future__ import annotations

import pytest
import torch

from distill.errors import UserError
from distill.models.adapted import AdaptedModel, AdaptedTower
from distill.models.vision import ImageOutput


class Means(AdaptedTower):
    """Encodes a picture as the mean of its pixels."""

    patch, width, depth, cls_tokens = 2, 3, 1, 1

    def tokens(self, x: torch.Tensor) -> ImageOutput:
        patches = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1)).flatten(2).transpose(1, 2)  # [B, N, 3]
        return ImageOutput(patches.mean(1, keepdim=True), patches)


def test_pixels_from_0_to_255_are_refused_as_by_a_tower_of_ours():
    model = AdaptedModel(Means([0.5] * 3, [0.25] * 3), image_size=4)
    cls, patches = model.encode_image(torch.ones(1, 3, 4, 4))
    assert patches.shape == (1, 2, 2, 3)
    assert torch.equal(cls, torch.full((1, 1, 3), 2.0))
    with pytest.raises(UserError, match=r"Images are torch.uint8: convert to float in \[0, 1\]"):
        model.encode_image(torch.full((1, 3, 4, 4), 255, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"shape \[3, 4, 4\]"):
        model.encode_image(torch.ones(3, 4, 4))
