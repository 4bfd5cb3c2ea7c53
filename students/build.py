"""From a recipe's student to a model."""

from __future__ import annotations

import torch

from distill.config.schema import Config, StudentConfig
from distill.models.pair import ImageTextModel
from distill.models.text import TextTower
from distill.models.tokenizers import Tokenizer
from distill.models.vision import VisionTower
from students.architectures import parse_arch


def build_model(
    student: StudentConfig, cfg: Config, tokenizer: Tokenizer, device: str | torch.device = "cpu"
) -> ImageTextModel:
    """A freshly initialised model for `student`; `device="meta"` gives shapes without memory, to count parameters.

    One CLS token when `captions.cls2` is empty, otherwise two. Weights follow torch's global random state.
    """
    arch = parse_arch(student.arch)
    with torch.device(device):
        image = VisionTower(
            arch,
            cls_tokens=2 if cfg.captions.cls2 else 1,
            position_grid=cfg.vision.position_grid,
            gelu=cfg.vision.gelu,
            drop_path=cfg.vision.drop_path,
            kernels=cfg.vision.kernels,
            depth=student.depth,
        )
        text = TextTower(arch, tokenizer.vocabulary, cfg.text.layers, cfg.text.context, cfg.text.dropout)
        temperature = cfg.objective.contrastive.temperature
        return ImageTextModel(image, text, tokenizer, temperature, image_size=cfg.views.global_size)
