"""`--to tips`: the official npz files, one a tower, with the tokenizer beside them.

Their layouts fix what ours leaves open: the PyTorch one has the exact GELU and a text epsilon of 1e-5, the JAX one the
tanh GELU and 1e-6. Each tower goes into the layout that means the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from distill.errors import UserError
from distill.export.base import Reloaded, mask_token_lost, our_image, save_tokenizer
from distill.models import official
from distill.models.official_variants import GELU, HEAD_CHANNELS, SIZES, TEXT_EPS
from distill.models.sources import open_model
from distill.models.sources.base import OpenedModel
from distill.models.text import TextTower
from distill.models.tokenizers import STATE
from distill.models.tokenizers.sentence_piece import SentencePieceTokenizer
from distill.models.vision import VisionTower

ANY_SIZE = True
VISION, TEXT = "vision.npz", "text.npz"


def check(opened: OpenedModel) -> None:
    our_image(opened, "tips")
    layouts(opened)


def layouts(opened: OpenedModel) -> tuple[str, str | None]:
    """The layout, torch or jax, of either file; UserError where neither can say what the tower is."""
    image, text = opened.model.image, opened.model.text
    swiglu, image_family = image.arch.ffn == "swiglu", _family(image)
    vision = next((name for name in GELU if (swiglu or image.gelu == GELU[name]) and _says(name, image_family)), None)
    if vision is None:
        raise UserError(_refusal(opened, f"{image.arch.heads} heads of width {image.width} with the exact GELU"))
    if text is None:
        return vision, None
    texts = next((name for name in TEXT_EPS if text.norm_eps == TEXT_EPS[name] and _says(name, _family(text))), None)
    if texts is None:
        raise UserError(_refusal(opened, f"a text tower of {text.arch.heads} heads and epsilon {text.norm_eps:g}"))
    return vision, texts


def _family(tower: VisionTower | TextTower) -> bool:
    """Whether the number of heads follows from the width, as PyTorch files, which do not say it, assume."""
    width = tower.width
    return tower.arch.heads == (SIZES[width][1] if width in SIZES else max(width // HEAD_CHANNELS, 1))


def _says(layout: str, family: bool) -> bool:
    return layout == "jax" or family


def _refusal(opened: OpenedModel, what: str) -> str:
    return f"{opened.source} has {what}, which the official files cannot say. Allowed: --to timm, onnx or safetensors."


def write(opened: OpenedModel, folder: Path) -> None:
    model = opened.model
    vision, texts = layouts(opened)
    _save(folder / VISION, official.to_official(model.image, vision))
    if texts is not None:
        temperature = np.float32(model.temperature.item())
        _save(folder / TEXT, official.to_official(model.text, texts), {official.TEMPERATURE[texts]: temperature})
    save_tokenizer(model.tokenizer, folder)


def _save(path: Path, tensors: dict[str, Tensor], more: dict[str, np.float32] | None = None) -> None:
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()} | (more or {})
    np.savez(path, **arrays)  # type: ignore[arg-type]


def source_of(folder: Path) -> str:
    """The `tips:` source that opens the files in `folder`."""
    names = [name for name in (VISION, TEXT, "tokenizer.model", STATE) if (folder / name).is_file()]
    return "tips:" + "+".join(str(folder / name) for name in names)


def reload(folder: Path) -> Reloaded:
    model = open_model(source_of(folder)).model
    return Reloaded(lambda images: dict(zip(("cls", "patches", "values"), model.image.dense(images))),
                    model.text, model.tokenizer)  # fmt: skip


def loading(opened: OpenedModel, name: str) -> tuple[str, list[str]]:
    vision, texts = layouts(opened)
    pieces = isinstance(opened.model.tokenizer, SentencePieceTokenizer)
    tokenizer = ["tokenizer.model" if pieces else STATE] * (opened.model.tokenizer is not None)
    parts = "+".join(f"{name}/{file}" for file in [VISION] + [TEXT] * (texts is not None) + tokenizer)
    layouts_said = f"the {vision} layout" + ("" if texts is None else f", `{TEXT}` in the {texts} layout")
    notes = [
        f"`{VISION}` is in {layouts_said}: the official encoder of that framework reads it.",
        "The official code preprocesses at 448 pixels whatever the model was trained at; sides are padded to whole "
        "patches.",
    ]
    if vision == "jax":
        notes += mask_token_lost(opened.model.image)
    if texts is not None and opened.model.text.context != 64:
        notes.append(f"The original cuts texts at {opened.model.text.context} tokens, the official encoders at 64.")
    if texts is not None and not pieces:
        notes.append("The tokenizer is no SentencePiece model, which the official encoders read: feed token ids.")
    return f'import distill\n\nmodel = distill.load("tips:{parts}")', notes
