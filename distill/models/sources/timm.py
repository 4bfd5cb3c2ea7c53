"""`timm:NAME[.TAG][@FILE]`: vision transformers of timm with patch tokens (DINOv2, DINOv3, SigLIP 2, PE, RADIO, ...).

Each gets its own mean and std from its pretrained configuration, the activation that its weights were trained with
(QuickGELU where the configuration's notes say so), and positions for whatever size it is shown. With FILE the weights
come from there; TAG can then be left out where all weights of NAME were trained alike. The global token is the class
token, or what the model pools where it has none or pools by attention; registers are dropped. timm's TIPSv2 models
become towers of ours: their one "register" is the second CLS token, and their positions are resized bilinearly, as
officially.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import AttentionRope, GluMlp, PatchEmbed, SwiGLU
from timm.layers.attention import Attention
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from distill.errors import UserError, did_you_mean
from distill.models import official, official_variants
from distill.models.adapted import AdaptedModel, AdaptedTower
from distill.models.arch import Arch
from distill.models.sources.base import (
    NO_NORMALISATION,
    QUICK_GELU,
    OpenedModel,
    SourceFacts,
    Trained,
    count,
    files_hash,
    need_tag,
)
from distill.models.sources.hub import cached_file, fetch_failed, missing_weights
from distill.models.values import ValueBlock
from distill.models.vision import ImageOutput, VisionTower
from distill.models.weights import read_weights, shorten

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# whose register is a second CLS token, trained on captions
TWO_CLS = tuple(f"vit_{size}_patch14_reg1_tipsv2" for size in ("base", "large", "so400m", "giant"))


def open_source(source: str, where: str) -> OpenedModel:
    name, file = _name_and_file(source, where)
    trunk = _create(source, name, file)
    tower = as_tower(trunk, name)
    facts = _facts(source, name, file, trunk)
    return OpenedModel(source, AdaptedModel(tower, facts.image_size), facts)


def describe_source(source: str, where: str) -> SourceFacts:
    name, file = _name_and_file(source, where)
    if file is not None and not file.is_file():
        raise UserError(f"No weights at {file}, which {source} names. Give the path of a .safetensors or .pth file.")
    return _facts(source, name, file, _shape(source, name))


def as_tower(trunk: VisionTransformer | Eva, name: str) -> AdaptedTower | VisionTower:
    """A model of timm in the shape of our image tower; `name` is its architecture, with or without a tag."""
    if name.partition(".")[0] in TWO_CLS:
        tower = official_variants.timm_tower(trunk)
        rows = official.rows_of(tower, "timm")
        state = official.read_tower(trunk.state_dict(), rows)
        tower.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
        return tower
    cfg: Any = trunk.pretrained_cfg
    return TimmTower(trunk, cfg["mean"], cfg["std"])


class TimmTower(AdaptedTower):
    """A vision transformer of timm. CLS is one token `[B, 1, D]`: see the module."""

    def __init__(self, trunk: VisionTransformer | Eva, mean: Sequence[float], std: Sequence[float]):
        super().__init__(mean, std)
        self.trunk: Any = trunk
        self.patch = patch_of(trunk)
        self.width, self.depth, self.cls_tokens = trunk.embed_dim, len(trunk.blocks), 1
        self.prefix = trunk.num_prefix_tokens

    def tokens(self, x: Tensor) -> ImageOutput:
        features = self.trunk.forward_features(x)  # [B, P + N, D]
        return ImageOutput(self._cls(features), self._final(features)[:, self.prefix :])

    def value_tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        last = value_block(self.trunk)
        view = _with_last(self.trunk, last)
        features = view.forward_features(x)  # [B, P + N + N, D]
        n = (features.shape[1] - self.prefix) // 2
        own = features[:, : self.prefix + n]
        cls = self._cls(own)
        return cls, self._final(own)[:, self.prefix :], self._final(features[:, self.prefix + n :])

    def check_values(self) -> None:
        value_block(self.trunk)

    def layers(self, images: Tensor, indices: Sequence[int]) -> list[ImageOutput]:
        self.check_indices(indices)
        wanted = sorted(set(indices))
        found = self.trunk.forward_intermediates(
            self.normalised(images), indices=wanted, norm=True, output_fmt="NLC", intermediates_only=True,
            return_prefix_tokens=self.prefix > 0,  # Eva fails where it is asked for those that there are not
        )  # fmt: skip
        outputs = {}
        for index, tokens in zip(wanted, found):
            patches, prefix = tokens if isinstance(tokens, tuple) else (tokens, tokens[:, :0])
            outputs[index] = ImageOutput(self._cls(torch.cat([prefix, patches], dim=1)), self._final(patches))
        return [outputs[index] for index in indices]

    def _cls(self, features: Tensor) -> Tensor:
        """The global token `[B, 1, D]` of `[B, P + N, D]`."""
        if own_token(self.trunk):
            return self._final(features)[:, :1]
        return self.trunk.forward_head(features, pre_logits=True)[:, None]

    def _final(self, features: Tensor) -> Tensor:
        """The final norm, where the model applies it only after pooling."""
        return self.trunk.fc_norm(features) if isinstance(self.trunk.norm, nn.Identity) else features


class EvaValueBlock(ValueBlock):
    """`ValueBlock` for the blocks of EVA, DINOv3 and PE: rotary positions touch queries and keys, never values."""

    def forward(self, x: Tensor, **positions: Any) -> Tensor:
        return torch.cat([self.block(x, **positions), self.values(x[:, self.prefix_tokens :])], dim=1)

    def values(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        block, attention = self.block, self.block.attn
        y = block.norm1(x)
        if attention.qkv is None:
            v = attention.v_proj(y)
        else:
            start = 2 * attention.qkv.out_features // 3
            bias = getattr(attention, "v_bias", None) if attention.qkv.bias is None else attention.qkv.bias[start:]
            v = nn.functional.linear(y, attention.qkv.weight[start:], bias)
        y = attention.proj(attention.norm(v))
        x = x + (y if block.gamma_1 is None else block.gamma_1 * y)
        y = block.mlp(block.norm2(x))
        return x + (y if block.gamma_2 is None else block.gamma_2 * y)


def value_block(trunk: Any) -> ValueBlock:
    """The last block with its value path; `UserError` when it is not a plain pre-norm attention block."""
    block = trunk.blocks[-1]
    attention = getattr(block, "attn", None)
    plain = attention is not None and getattr(attention, "gate", None) is None
    if plain and type(block) is Block and type(attention) is Attention and isinstance(attention.norm, nn.Identity):
        return ValueBlock(block, trunk.num_prefix_tokens)
    full = plain and getattr(attention, "num_kv_heads", None) in (None, getattr(attention, "num_heads", None))
    if full and type(block) is EvaBlock and type(attention) in (EvaAttention, AttentionRope):
        return EvaValueBlock(block, trunk.num_prefix_tokens)
    raise UserError(
        f"{type(block).__name__} with {type(attention).__name__} has no value path that is known here: use its final "
        f"tokens (zeroshot_seg.paths=final, locality.paths=final), or another model."
    )


def _with_last(trunk: Any, last: ValueBlock) -> Any:
    """`trunk` with another last block: shares weights and timm's forward, and leaves `trunk` as it is."""
    view = copy.copy(trunk)
    view._modules = dict(trunk._modules)
    view.blocks = nn.Sequential(*trunk.blocks[:-1], last)
    return view


def own_token(trunk: Any) -> bool:
    """Whether its class token stands for the whole image here, rather than what it pools."""
    return trunk.attn_pool is None and trunk.cls_token is not None


def patch_of(trunk: Any) -> int:
    """The side of a patch in pixels, of a model that `check_trunk` lets through."""
    return trunk.patch_embed.patch_size[0]


def check_trunk(source: str, trunk: Any) -> None:
    """`UserError` for a model of timm with patches or blocks that are not known here."""
    _check_patches(source, trunk)
    strange = next((block for block in trunk.blocks if not _is_ordinary(block)), None)
    if strange is not None:
        raise UserError(
            f"{source}: its blocks, {type(strange).__name__}, are not known here. Allowed: vision transformers whose "
            f"blocks have attention and then an MLP, such as timm:vit_base_patch16_dinov3.lvd1689m."
        )


def _is_ordinary(block: nn.Module) -> bool:
    return hasattr(block, "attn") and hasattr(getattr(block, "mlp", None), "fc2")


def _check_patches(source: str, trunk: Any) -> None:
    """`UserError` unless a patch is a square of pixels: hybrids count their patches in cells of a convolutional net."""
    embed, sides = trunk.patch_embed, tuple(trunk.patch_embed.patch_size)
    plain = isinstance(embed, PatchEmbed) and isinstance(embed.proj, nn.Conv2d) and sides[0] == sides[1]
    if not plain or not embed.proj.kernel_size == embed.proj.stride == sides:
        raise UserError(
            f"{source}: its patches, by {type(embed).__name__}, are no squares of pixels side by side. Allowed: vision "
            f"transformers with one convolution before the first block, such as timm:vit_base_patch16_dinov3.lvd1689m."
        )


def _name_and_file(source: str, where: str) -> tuple[str, Path | None]:
    name, at, file = where.partition("@")
    arch = name.partition(".")[0]
    if not timm.is_model(arch):
        near = did_you_mean(arch, timm.list_models("vit*") + timm.list_models("*eva*"))
        raise UserError(
            f"{source}: timm {timm.__version__} has no model '{arch}'.{near} See timm.list_models('*vit*')."
        )
    tags = [tag for tag in timm.list_pretrained(f"{arch}*") if tag.partition(".")[0] == arch]
    if name != arch and name not in tags:
        raise UserError(
            f"{source}: unknown tag in '{name}'. Allowed: {', '.join(tags) or f'{arch} alone, with @FILE'}."
        )
    if not at and not tags:
        raise UserError(f"{source}: timm knows no weights of {arch}. Give a file: timm:{arch}@/path/model.safetensors.")
    if at and name == arch:
        need_tag(source, arch, {tag.partition(".")[2]: _trained(tag) for tag in tags}, f"timm:{arch}.TAG@FILE")
    return name, Path(file).expanduser() if at else None


def _build(source: str, name: str, **weights: Any) -> VisionTransformer | Eva:
    arguments: dict[str, Any] = {"num_classes": 0}
    if name.partition(".")[0] not in TWO_CLS:
        arguments["dynamic_img_size"] = True
    if _trained(name).quick_gelu:
        arguments["act_layer"] = "quick_gelu"
    try:
        trunk = timm.create_model(name, **arguments, **weights)
    except TypeError as error:
        raise _no_patches(source, name) from error
    if not isinstance(trunk, VisionTransformer | Eva):
        raise _no_patches(source, name)
    check_trunk(source, trunk)
    return trunk


def _shape(source: str, name: str) -> VisionTransformer | Eva:
    """The model without weights, on the meta device."""
    with torch.device("meta"):
        return _build(source, name)


def _no_patches(source: str, name: str) -> UserError:
    return UserError(
        f"{source}: {name} is no vision transformer with patch tokens that is known here. Allowed: timm's ViT and EVA "
        f"families (DINOv2, DINOv3, SigLIP, PE, TIPSv2, RADIO, CLIP)."
    )


def _create(source: str, name: str, file: Path | None) -> VisionTransformer | Eva:
    """The model with its weights, from `file` or as timm finds them."""
    if file is None:
        _shape(source, name)  # refuses before anything is fetched
        repo = _cfg(name).hf_hub_id
        try:
            return _build(source, name, pretrained=True)
        except UserError:
            raise
        except Exception as error:  # network, cache and hub raise many types
            raise fetch_failed(source, repo, f"timm:{name}@/path/model.safetensors", error) from error
    state = read_weights(file)
    try:
        return _build(source, name, pretrained=True, pretrained_cfg_overlay={"state_dict": state, "custom_load": False})
    except UserError:
        raise
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{file} does not fit {name}: {shorten(error)}. Give the file of this model.") from error


def _cfg(name: str) -> Any:
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return cfg if cfg is not None else timm.models.PretrainedCfg()


def _trained(name: str) -> Trained:
    """How the weights of `name` were trained. timm's notes say where with QuickGELU; it then builds GELU regardless."""
    cfg = _cfg(name)
    return Trained(tuple(cfg.mean), tuple(cfg.std), any(QUICK_GELU in note for note in cfg.notes or ()))


def _facts(source: str, name: str, file: Path | None, trunk: Any) -> SourceFacts:
    cfg = _cfg(name)
    repo = cfg.hf_hub_id
    found = file or cached_file(repo, HUB_FILES)
    two = name.partition(".")[0] in TWO_CLS
    arch = arch_of(trunk, name.partition(".")[0])
    grid = tuple(trunk.patch_embed.grid_size) if trunk.pos_embed is not None else None
    parameters = count(trunk)
    if two:
        tower = official_variants.timm_tower(trunk)
        arch, parameters = tower.arch, count(tower)
    size = (cfg.input_size or (3, 224, 224))[-1]
    return SourceFacts(
        source=source,
        kind="timm",
        where=str(found or repo or cfg.url),
        sha256=None if found is None else files_hash([found]),
        licence=cfg.license,
        arch=arch,
        mean=NO_NORMALISATION[0] if two else tuple(cfg.mean),
        std=NO_NORMALISATION[1] if two else tuple(cfg.std),
        cls_tokens=2 if two else 1,
        registers=0 if two else trunk.num_prefix_tokens - own_token(trunk),
        position_grid=grid,
        image_size=size // arch.patch * arch.patch,
        image_parameters=parameters,
        text_parameters=0,
        texts="no text tower",
        missing=None if found else missing_weights(source, repo, f"timm:{name}@/path/model.safetensors"),
        variant=official_variants.variant(arch, grid[0]) if two and grid else None,
        notes=_notes(name, grid),
    )


def _notes(name: str, grid: tuple[int, int] | None) -> tuple[str, ...]:
    """What is special about the model; `grid`: rows and columns of its positions."""
    notes: tuple[str, ...] = (QUICK_GELU,) if _trained(name).quick_gelu else ()
    if "_radio_" in name and grid is not None:  # has a class token for each of its teachers
        own = f"{grid[0]}x{grid[1]}"
        notes += (f"the first of RADIO's class tokens alone, positions of other sizes from its {own}, not its 128x128",)
    return notes


def arch_of(trunk: Any, name: str) -> Arch:
    """A model of timm as plain numbers; `name` stands for the size."""
    block = trunk.blocks[0]
    ffn = "swiglu" if isinstance(block.mlp, GluMlp | SwiGLU) else "gelu"
    heads, mlp = block.attn.num_heads, block.mlp.fc2.in_features
    return Arch(name, patch_of(trunk), trunk.embed_dim, len(trunk.blocks), heads, mlp, ffn, 0, 0)
