"""How the teacher's patches meet the student's where their patch sizes differ: the plan, and its two resizings.

A student's grid and a teacher's grid both cut the same image, so cell (i, j) of one lies where the same share of the
other lies, and resizing with half-pixel centres (`align_corners=False`) keeps them aligned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError


@dataclass(frozen=True)
class Meeting:
    """What a frozen teacher is shown and what becomes of its patches.

    `size`: side in pixels of the image the teacher sees (the student's view is `view`). `teacher`, `student`: sides of
    the two grids; equal under `meet: input`.
    """

    view: int
    size: int
    teacher: int
    student: int

    def line(self) -> str:
        """The plan in words, as `distill check` shows it."""
        shown = f"global {self.view} px"
        if self.size != self.view:
            shown += f" resized bilinearly to {self.size} px"
        same = self.teacher == self.student
        how = "one to one" if same else f"resized bilinearly to the students' {self.student} x {self.student}"
        return f"{shown} = {self.teacher} x {self.teacher} patches, unmasked; targets {how}"


def plan(view: int, student_patch: int, teacher_patch: int, meet: str) -> Meeting:
    """The plan for a global view of `view` pixels, a multiple of the student's patch.

    `targets`: the teacher sees the view as it is, its patches are resized to the student's grid. `input`: the view is
    resized for the teacher so that the grids agree. Raises `UserError` when the teacher cannot see the view as it is.
    """
    grid = view // student_patch
    if meet == "input":
        return Meeting(view, grid * teacher_patch, grid, grid)
    if view % teacher_patch:
        near = sorted({max(view // teacher_patch, 1) * teacher_patch, -(-view // teacher_patch) * teacher_patch})
        raise UserError(
            f"views.global_size={view} is not a multiple of the teacher's patch size {teacher_patch}: set "
            f"teacher.meet=input, which resizes the view for the teacher, or a multiple ({', '.join(map(str, near))})."
        )
    return Meeting(view, view, view // teacher_patch, grid)


def resize_images(images: Tensor, size: int) -> Tensor:
    """`[B, 3, H, W]` -> `[B, 3, size, size]`, bilinear, anti-aliased when shrinking; as it is where it fits already."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def resize_patches(patches: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Patch features `[B, h*w, D]` on another grid `[B, h'*w', D]`, bilinear, anti-aliased when shrinking."""
    maps = patches.transpose(1, 2).unflatten(2, grid)  # [B, D, h, w]
    maps = F.interpolate(maps.float(), size=to, mode="bilinear", align_corners=False, antialias=True)
    return maps.flatten(2).transpose(1, 2).to(patches.dtype)
