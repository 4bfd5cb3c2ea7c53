"""`--to hf`: a folder that transformers' own TIPSv2 classes load, with the official PyTorch arrays inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import UserError
from distill.export.base import Reloaded, native_size, our_pair, save_tokenizer
from distill.models import official
from distill.models.sources.base import OpenedModel
from distill.models.sources.hf import ACTIVATIONS, TEXT, VISION
from distill.models.tokenizers.sentence_piece import SentencePieceTokenizer
from distill.models.vision import NORM_EPS, VisionTower

ANY_SIZE = True


def check(opened: OpenedModel) -> None:
    our_pair(opened, "hf")
    image = opened.model.image
    if image.cls_tokens != 2:
        raise UserError(
            f"{opened.source} has 1 CLS token, TIPSv2 in transformers 2. Allowed: --to timm, tips, onnx or safetensors."
        )
    if mlp_ratio(image) is None:
        raise UserError(
            f"{opened.source} has a SwiGLU of {image.arch.mlp} channels, transformers only multiples of 8. Allowed: "
            f"--to timm, tips, onnx or safetensors."
        )


def mlp_ratio(image: VisionTower) -> float | None:
    """The ratio from which transformers works out this feed-forward layer; None where no ratio gives it."""
    if image.arch.ffn == "swiglu":  # two thirds of the product, rounded up to a multiple of 8
        return None if image.arch.mlp % 8 else (1.5 * image.arch.mlp + 0.5) / image.width
    ratio = image.arch.mlp / image.width
    return ratio if int(image.width * ratio) == image.arch.mlp else (image.arch.mlp + 0.5) / image.width


def write(opened: OpenedModel, folder: Path) -> None:
    model = opened.model
    arrays = {VISION + name: value for name, value in official.to_official(model.image).items()}
    arrays |= {TEXT + name: value for name, value in official.to_official(model.text).items()}
    arrays["temperature"] = model.temperature.detach()
    weights = {name: value.detach().clone().contiguous() for name, value in arrays.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _json(folder / "config.json", config(model))
    size = {"height": model.image_size, "width": model.image_size}
    _json(folder / "preprocessor_config.json", {"image_processor_type": "Tipsv2ImageProcessor", "size": size})
    save_tokenizer(model.tokenizer, folder)


def config(model: Any) -> dict[str, Any]:
    """The content of config.json."""
    image, text = model.image, model.text
    names = {gelu: name for name, gelu in ACTIVATIONS.items()}
    vision = {
        "model_type": "tipsv2_vision_model",
        "hidden_size": image.width,
        "num_hidden_layers": image.depth,
        "num_attention_heads": image.arch.heads,
        "mlp_ratio": mlp_ratio(image),
        "hidden_act": names[image.gelu],
        "layer_norm_eps": NORM_EPS,
        "image_size": native_size(image),
        "patch_size": image.patch,
        "use_swiglu_ffn": image.arch.ffn == "swiglu",
        "num_register_tokens": 1,  # the second CLS token
    }
    texts = {
        "model_type": "tipsv2_text_model",
        "vocab_size": text.vocabulary,
        "hidden_size": text.width,
        "intermediate_size": text.arch.text_mlp,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.arch.heads,
        "max_position_embeddings": text.context,
        "layer_norm_eps": text.norm_eps,
    }
    return {
        "architectures": ["Tipsv2Model"],
        "model_type": "tipsv2",
        "vision_config": vision,
        "text_config": texts,
        "temperature_init_value": model.temperature.item(),
    }


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def reload(folder: Path) -> Reloaded:
    import transformers

    loaded: Any = transformers.Tipsv2Model.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    missing = [*report["missing_keys"], *report["unexpected_keys"]]
    if missing:
        raise UserError(f"transformers {transformers.__version__} does not know these weights: {', '.join(missing)}.")
    model = model.float().eval()

    def image(images: Tensor) -> dict[str, Tensor]:
        tokens = model.vision_model(images).last_hidden_state  # [B, 2 + N, D]
        return {"cls": tokens[:, :2], "patches": tokens[:, 2:]}

    def text(ids: Tensor, valid: Tensor) -> Tensor:
        return model.text_model(input_ids=ids, attention_mask=valid.long()).pooler_output

    return Reloaded(torch.no_grad()(image), torch.no_grad()(text))


def loading(opened: OpenedModel, name: str) -> tuple[str, list[str]]:
    code = (
        f'from transformers import Tipsv2Model\n\nmodel = Tipsv2Model.from_pretrained("{name}").eval()\n'
        f"tokens = model.vision_model(images).last_hidden_state  # [B, 2 + N, D]: both CLS, then patches\n"
        f"texts = model.text_model(input_ids=ids, attention_mask=valid).pooler_output  # [B, D]"
    )
    notes = ['The "register" token is the second CLS token.']
    if isinstance(opened.model.tokenizer, SentencePieceTokenizer):
        notes.append("Make `ids` and `valid` with SentencePiece and `tokenizer.model`, from lower-cased texts.")
    return code, notes
