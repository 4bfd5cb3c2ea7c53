"""`--to timm`: the image tower as a vision transformer of timm, in the folder layout that timm's `local-dir:` reads.

Models are built on timm's TIPSv2 entries, with the arguments in which ours differs in `model_args`. timm has no text
towers. It resizes positions with bicubic interpolation, ours are bilinear: only the native size gives equal outputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.export.base import Reloaded, mask_token_lost, native_size, our_image
from distill.models import official
from distill.models.sources.base import OpenedModel
from distill.models.vision import VisionTower

ANY_SIZE = False
NAMES = {768: "vit_base", 1024: "vit_large", 1152: "vit_so400m"}


def check(opened: OpenedModel) -> None:
    our_image(opened, "timm")


def write(opened: OpenedModel, folder: Path) -> None:
    image = our_image(opened, "timm")
    weights = {name: value.detach().clone().contiguous() for name, value in official.to_official(image, "timm").items()}
    save_file(weights, folder / "model.safetensors")
    side = native_size(image)
    config = {
        "architecture": architecture(image),
        "num_classes": 0,
        "num_features": image.width,
        "model_args": model_args(image),
        "pretrained_cfg": {
            "input_size": [3, side, side], "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "crop_pct": 1.0,
            "crop_mode": "squash", "interpolation": "bilinear", "num_classes": 0, "first_conv": "patch_embed.proj",
            **({"license": opened.facts.licence} if opened.facts.licence else {}),
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def architecture(image: VisionTower) -> str:
    """The model of timm that is nearest: the giant for SwiGLU, else the one of this width, else the base."""
    size = "vit_giant" if image.arch.ffn == "swiglu" else NAMES.get(image.width, "vit_base")
    return f"{size}_patch14_reg1_tipsv2"


def model_args(image: VisionTower) -> dict[str, Any]:
    """The arguments of timm's VisionTransformer that give this tower, JSON-able."""
    swiglu = image.arch.ffn == "swiglu"
    side, hidden = native_size(image), image.arch.mlp * (2 if swiglu else 1)
    ratio = hidden / image.width
    return {
        "img_size": side,
        "patch_size": image.patch,
        "embed_dim": image.width,
        "depth": image.depth,
        "num_heads": image.arch.heads,
        "mlp_ratio": ratio if int(image.width * ratio) == hidden else (hidden + 0.5) / image.width,
        "reg_tokens": image.cls_tokens - 1,
        **({} if swiglu else {"act_layer": "gelu_tanh" if image.gelu == "tanh" else "gelu"}),
    }


def reload(folder: Path) -> Reloaded:
    trunk: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def image(images: Tensor) -> dict[str, Tensor]:
        tokens = trunk.forward_features(images)  # [B, C + N, D]
        count: int = trunk.num_prefix_tokens
        return {"cls": tokens[:, :count], "patches": tokens[:, count:]}

    return Reloaded(torch.no_grad()(image))


def loading(opened: OpenedModel, name: str) -> tuple[str, list[str]]:
    count = opened.model.image.cls_tokens
    code = (
        f'import timm\n\nmodel = timm.create_model("local-dir:{name}", pretrained=True).eval()\n'
        f"tokens = model.forward_features(images)  # [B, {count} + N, D], images in [0, 1]\n"
        f"cls, patches = tokens[:, :{count}], tokens[:, {count}:]"
    )
    notes = [
        "The image tower alone: timm has no text towers.",
        "Equal to the original at its native size. At other sizes (`dynamic_img_size=True`, or another `img_size`) "
        "timm resizes positions with bicubic interpolation, the original with bilinear: outputs differ.",
    ]
    if opened.model.image.cls_tokens == 2:
        notes.append('The "register" token is the second CLS token.')
    return code, notes + mask_token_lost(opened.model.image)
