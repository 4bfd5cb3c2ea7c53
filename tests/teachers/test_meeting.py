"""Where patch sizes differ, targets stay where their content is: a shift by half a patch would show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distill.config.schema import ObjectiveConfig
from distill.errors import UserError
from distill.models.vision import ImageOutput
from teachers.frozen import FrozenTeacher
from teachers.meeting import plan
from teachers.targets import TargetHeads


class Seer(nn.Module):
    """A tower whose patch features are the mean pixel of the patch: what it reports is where it looked."""

    def __init__(self, patch: int):
        super().__init__()
        self.patch = patch

    def forward(self, images: Tensor) -> ImageOutput:
        patches = nn.functional.avg_pool2d(images, self.patch).flatten(2).transpose(1, 2)  # [B, N, 3]
        return ImageOutput(patches.mean(1, keepdim=True), patches)


class SeerModel(nn.Module):
    def __init__(self, patch: int):
        super().__init__()
        self.image = Seer(patch)


def ramps(size: int) -> Tensor:
    """An image `[1, 3, size, size]` whose first two channels are the pixel's own x and y, in shares of the side."""
    line = (torch.arange(size) + 0.5) / size
    return torch.stack([line.expand(size, size), line[:, None].expand(size, size), torch.zeros(size, size)])[None]


@pytest.mark.parametrize("meet", ["targets", "input"])
@pytest.mark.parametrize(("view", "student", "teacher"), [(112, 14, 16), (112, 16, 14), (112, 8, 16), (112, 16, 8)])
def test_targets_lie_where_the_students_patches_lie(meet, view, student, teacher):
    meeting = plan(view, student, teacher, meet)
    opened = FrozenTeacher(SeerModel(teacher), TargetHeads(None, 4), ObjectiveConfig(), meeting)
    side = view // student
    patches = opened.look(ramps(view)).patches
    assert patches.shape == (1, side * side, 3)
    maps = patches[0].unflatten(0, (side, side))  # [side, side, 3]
    centre = (torch.arange(side) + 0.5) / side
    inner = slice(1, -1)  # at the border the ramp has no continuation to interpolate with
    near = 0.125 * 0.5 / side  # an eighth of half a patch: what an anti-aliasing kernel may bend a ramp by
    for channel, expected in enumerate((centre.expand(side, side), centre[:, None].expand(side, side))):
        assert (maps[inner, inner, channel] - expected[inner, inner]).abs().max() < near


def test_the_plan_in_words():
    assert plan(224, 14, 14, "targets").line() == "global 224 px = 16 x 16 patches, unmasked; targets one to one"
    assert plan(224, 14, 16, "targets").line() == (
        "global 224 px = 14 x 14 patches, unmasked; targets resized bilinearly to the students' 16 x 16"
    )
    assert plan(224, 14, 16, "input").line() == (
        "global 224 px resized bilinearly to 256 px = 16 x 16 patches, unmasked; targets one to one"
    )
    with pytest.raises(UserError, match=r"global_size=112 .* patch size 32: set teacher.meet=input.*\(96, 128\)"):
        plan(112, 16, 32, "targets")
