"""Class names to text features: prompt sets, and one encoding per class set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import unknown
from distill.evals.features import Encoder, finite

TEXTS_PER_BATCH = 256


@cache
def prompt_sets() -> dict[str, dict]:
    """The prompt sets by name: `{"source": where it comes from, "templates": ["a photo of a {}.", ...]}`."""
    return json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))


def templates(name: str) -> list[str]:
    """The templates of a prompt set; each has one `{}` for the class name. Raises UserError for an unknown set."""
    if name not in prompt_sets():
        raise unknown("prompt set", name, prompt_sets())
    return prompt_sets()[name]["templates"]


class TextCache:
    """Text features of one model; every distinct text and class set is encoded once."""

    def __init__(self, model: Encoder):
        self.model = model
        self._classes: dict[tuple, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised features `[len(texts), D]` float32; equal texts get bit-equal rows.

        Raises UserError for features that are not finite.
        """
        distinct = list(dict.fromkeys(texts))
        parts = [distinct[at : at + TEXTS_PER_BATCH] for at in range(0, len(distinct), TEXTS_PER_BATCH)]
        features = torch.cat([F.normalize(finite("texts", self.model.encode_text(part)), dim=-1) for part in parts])
        row = {text: at for at, text in enumerate(distinct)}
        return features[[row[text] for text in texts]]

    def classes(self, names: Sequence[str], prompts: str) -> Tensor:
        """One unit vector per class `[K, D]`: each prompt L2-normalised, averaged over prompts, normalised again."""
        key = (tuple(names), prompts)
        if key not in self._classes:
            sentences = [template.replace("{}", name) for name in names for template in templates(prompts)]
            features = self.encode(sentences)  # [K * T, D]
            mean = features.unflatten(0, (len(names), -1)).mean(1)
            self._classes[key] = F.normalize(mean, dim=-1)
        return self._classes[key]
