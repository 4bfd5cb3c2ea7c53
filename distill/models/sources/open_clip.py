"""`open_clip:NAME/TAG[@FILE]`: image-text pairs of open_clip (CLIP, SigLIP 2, PE, ...).

Image towers of open_clip's own and of timm. CLS and patches are both projected into the space of the texts, so that
patches can be compared with them: for CLIP that is final norm and projection, as for its class token. Each pair gets
the mean and std of its TAG, the activation that its weights were trained with (GELU, or QuickGELU where TAG or NAME
says so), its own tokenizer, its temperature, and positions for whatever size it is shown. With FILE the weights come
from there; TAG can then be left out where all weights of NAME were trained alike.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import UserError, did_you_mean
from distill.models.adapted import AdaptedModel, AdaptedText, AdaptedTower
from distill.models.arch import Arch
from distill.models.sources.base import QUICK_GELU, OpenedModel, SourceFacts, Trained, count, files_hash, need_tag
from distill.models.sources.hub import cached_file, fetch_failed, missing_weights
from distill.models.sources.timm import TimmTower, arch_of, check_trunk
from distill.models.tokenizers.open_clip import OpenClipTokenizer
from distill.models.vision import ImageOutput
from distill.models.weights import read_weights, shorten

HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Their tag says QuickGELU. But open_clip added them with GELU and measured them so (76.2 % on ImageNet, in its
# docs/openclip_results.csv), and timm has the same weights with GELU.
PLAIN_GELU = (("ViT-B-16", "dfn2b"),)


def open_source(source: str, where: str) -> OpenedModel:
    name, tag, file = _parts(source, where)
    pair = _create(source, name, tag, file)
    facts = _facts(source, name, tag, file, pair)
    tower = as_tower(source, name, pair.visual, facts.mean, facts.std)
    tokenizer = _tokenizer(name)
    temperature = float(pair.logit_scale.detach().exp().reciprocal())
    model = AdaptedModel(tower, facts.image_size, ClipText(pair, _context(name)), tokenizer, temperature)
    return OpenedModel(source, model, facts)


def describe_source(source: str, where: str) -> SourceFacts:
    name, tag, file = _parts(source, where)
    if file is not None and not file.is_file():
        raise UserError(f"No weights at {file}, which {source} names. Give the path of a checkpoint of {name}.")
    return _facts(source, name, tag, file, _shape(source, name, tag))


class ClipTower(AdaptedTower):
    """open_clip's own vision transformer, class token pooled: `[B, 1, E]` and `[B, N, E]` in the space of the texts."""

    def __init__(self, visual: VisionTransformer, mean: Sequence[float], std: Sequence[float]):
        super().__init__(mean, std)
        self.visual: Any = visual
        self.patch, self.depth, self.cls_tokens = visual.patch_size[0], len(visual.transformer.resblocks), 1
        self.width = visual.output_dim

    def tokens(self, x: Tensor) -> ImageOutput:
        x = self._embedded(x)
        for block in self.visual.transformer.resblocks:
            x = block(x)
        return self._projected(x)

    def value_tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.check_values()
        x = self._embedded(x)
        *blocks, last = self.visual.transformer.resblocks
        for block in blocks:
            x = block(x)
        final = self._projected(last(x))
        return final.cls, final.patches, self._projected(_values(last, x)).patches

    def check_values(self) -> None:
        last = self.visual.transformer.resblocks[-1]
        if type(last) is not ResidualAttentionBlock:
            raise UserError(
                f"{type(last).__name__} has no value path that is known here: use its final tokens "
                f"(zeroshot_seg.paths=final, locality.paths=final), or another model."
            )

    def layers(self, images: Tensor, indices: Sequence[int]) -> list[ImageOutput]:
        self.check_indices(indices)
        x = self._embedded(self.normalised(images))
        outputs = []
        for block in self.visual.transformer.resblocks:
            x = block(x)
            outputs.append(self._projected(x))
        return [outputs[index] for index in indices]

    def _embedded(self, x: Tensor) -> Tensor:
        """`[B, 1 + N, D]` with positions for this size: bicubic, anti-aliased, as open_clip resizes them."""
        visual, grid = self.visual, self.grid(*x.shape[-2:])
        if grid != tuple(visual.grid_size):
            table = visual.positional_embedding
            maps = table[1:].T.reshape(1, -1, *visual.grid_size)  # [1, D, G, G]
            maps = F.interpolate(maps, size=grid, mode="bicubic", antialias=True, align_corners=False)
            visual = copy.copy(visual)  # a view with other positions: shares everything else
            visual._parameters = dict(visual._parameters)
            visual._parameters["positional_embedding"] = torch.cat([table[:1], maps[0].flatten(1).T])
        return visual._embeds(x)

    def _projected(self, x: Tensor) -> ImageOutput:
        x = self.visual.ln_post(x)
        if self.visual.proj is not None:
            x = x @ self.visual.proj
        return ImageOutput(x[:, :1], x[:, 1:])


def _values(block: Any, x: Tensor) -> Tensor:
    """The value path of every token `[B, L, D]`: LN -> value -> projection -> + input -> MLP."""
    attention, width = block.attn, x.shape[-1]
    v = F.linear(block.ln_1(x), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    x = x + block.ls_1(attention.out_proj(v))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


class ClipTimmTower(TimmTower):
    """A vision transformer of timm inside a pair of open_clip: its head follows the pooling, and every patch."""

    def __init__(self, trunk: Any, head: nn.Module, width: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__(trunk, mean, std)
        self.head, self.width = head, width

    def _cls(self, features: Tensor) -> Tensor:
        return self.head(self.trunk.forward_head(features))[:, None]

    def _final(self, features: Tensor) -> Tensor:
        return self.head(self.trunk.head(super()._final(features)))


class ClipText(AdaptedText):
    """The text tower of a pair. Which tokens are real is the model's own business: `valid` is not read."""

    def __init__(self, pair: Any, context: int):
        super().__init__()
        self.context, self.vocabulary = context, pair.vocab_size
        pair.visual = nn.Identity()  # the image tower lives elsewhere
        self.pair = pair
        self.width = 0

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        return self.pair.encode_text(ids)


def as_tower(source: str, name: str, visual: Any, mean: Sequence[float], std: Sequence[float]) -> AdaptedTower:
    """The image tower of a pair in our shape; `UserError` for one without patch tokens that are known here."""
    _check_tower(source, visual)
    if type(visual) is TimmModel:
        trunk = _dynamic(name, visual.trunk)
        return ClipTimmTower(trunk, visual.head, open_clip.get_model_config(name)["embed_dim"], mean, std)
    return ClipTower(visual, mean, std)


def _check_tower(source: str, visual: Any) -> None:
    """`UserError` for an image tower without patch tokens that are known here."""
    own = visual.trunk if type(visual) is TimmModel else visual
    by_timm = isinstance(own, timm.models.VisionTransformer | timm.models.Eva)
    by_token = type(own) is VisionTransformer and own.attn_pool is None and own.pool_type == "tok"
    if by_timm:
        check_trunk(source, own)
    elif not by_token or own.final_ln_after_pool:
        raise UserError(
            f"{source}: the image tower {type(own).__name__} has no patch tokens that are known here. Allowed: vision "
            f"transformers pooled by class token or by timm, such as open_clip:ViT-B-16-SigLIP2/webli."
        )


def _dynamic(name: str, trunk: Any) -> Any:
    """The same trunk, made again so that it takes images of any size."""
    cfg = open_clip.get_model_config(name)["vision_cfg"]
    classes, pool = trunk.num_classes, trunk.global_pool
    again = timm.create_model(cfg["timm_model_name"], num_classes=classes, global_pool=pool, dynamic_img_size=True)
    again.load_state_dict(trunk.state_dict())
    return again


def _parts(source: str, where: str) -> tuple[str, str, Path | None]:
    """(name, tag, file) of `NAME/TAG[@FILE]` or `NAME@FILE`; the tag is empty where none is needed."""
    head, at, file = where.partition("@")
    name, _, tag = head.partition("/")
    if name not in open_clip.list_models():
        near = did_you_mean(name, open_clip.list_models())
        raise UserError(f"{source}: open_clip has no model '{name}'.{near} See open_clip.list_models().")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags and (tag or not at):
        allowed = ", ".join(f"{name}/{tag}" for tag in tags) or f"none, so give {name}@FILE"
        raise UserError(f"{source}: unknown weights '{tag}'. Allowed: {allowed}.")
    if not tag:
        need_tag(source, name, {known: _trained(name, known) for known in tags}, f"open_clip:{name}/TAG@FILE")
    return name, tag or next(iter(tags), ""), Path(file).expanduser() if at else None


def _trained(name: str, tag: str) -> Trained:
    """How these weights were trained; with CLIP's mean and std where their tag does not say."""
    cfg = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    mean, std = cfg.get("mean", open_clip.OPENAI_DATASET_MEAN), cfg.get("std", open_clip.OPENAI_DATASET_STD)
    by_tag = cfg.get("quick_gelu", False) and (name, tag) not in PLAIN_GELU
    return Trained(tuple(mean), tuple(std), bool(by_tag or open_clip.get_model_config(name).get("quick_gelu", False)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's warning that a model was made without weights: here that is the purpose."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _build(name: str, tag: str, **how: Any) -> Any:
    """The pair with the activation that these weights were trained with, in both towers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "QuickGELU mismatch")  # of NAME and TAG: it is settled here
        return open_clip.create_model(name, force_quick_gelu=_trained(name, tag).quick_gelu, **how)


def _shape(source: str, name: str, tag: str) -> Any:
    """The pair without weights, on the meta device."""
    try:
        with torch.device("meta"), _quiet():
            return _build(name, tag, load_weights=False, device="meta", pretrained_text=False)
    except Exception as error:  # network, cache and hub raise many types
        text = open_clip.get_model_config(name)["text_cfg"].get("hf_model_name")
        if text is None:
            raise
        raise UserError(
            f"{source}: its text tower is {text} of Hugging Face, whose configuration is not in this machine's cache; "
            f"it is fetched where there is a network (or by: hf download {text} config.json). "
            f"The attempt ended with: {shorten(error, 160)}."
        ) from error


def _context(name: str) -> int:
    """Tokens of a text as open_clip pads it; a tower of Hugging Face itself says how many positions it has."""
    return open_clip.get_model_config(name)["text_cfg"].get("context_length", DEFAULT_CONTEXT_LENGTH)


def _create(source: str, name: str, tag: str, file: Path | None) -> Any:
    if file is not None:
        read_weights(file)  # refuses what is damaged before open_clip reads it
    _check_tower(source, _shape(source, name, tag).visual)  # before anything is fetched
    if file is not None:
        try:
            return _build(name, tag, pretrained=str(file))
        except (RuntimeError, KeyError, ValueError, AssertionError) as error:
            raise UserError(f"{file} does not fit {name}: {shorten(error)}. Give the file of this model.") from error
    try:
        return _build(name, tag, pretrained=tag)
    except Exception as error:  # network, cache and hub raise many types
        raise fetch_failed(
            source, _repo(name, tag), f"open_clip:{name}/{tag}@/path/weights.safetensors", error
        ) from error


def _tokenizer(name: str) -> OpenClipTokenizer | None:
    """The model's tokenizer, or None when it is not on this machine and cannot be fetched."""
    try:
        return OpenClipTokenizer(name)
    except Exception:  # the hub's and transformers' errors are of many types; `_facts` says what follows
        return None


def _repo(name: str, tag: str) -> str | None:
    hub = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "") if tag else ""
    return "/".join(hub.split("/")[:2]) or None


def _facts(source: str, name: str, tag: str, file: Path | None, pair: Any) -> SourceFacts:
    visual, repo = pair.visual, _repo(name, tag)
    _check_tower(source, visual)
    mean, std, quick_gelu = _trained(name, tag)
    found = file or cached_file(repo, HUB_FILES)
    config = open_clip.get_model_config(name)
    image = count(visual)
    if type(visual) is TimmModel:
        arch = arch_of(visual.trunk, name)
        grid = None if visual.trunk.pos_embed is None else tuple(visual.trunk.patch_embed.grid_size)
        registers = visual.trunk.num_prefix_tokens - (visual.trunk.global_pool == "token")
    else:
        arch, grid, registers = _clip_arch(name, visual.transformer, visual.patch_size[0]), tuple(visual.grid_size), 0
    tokenizer = config["text_cfg"].get("hf_tokenizer_name")
    of = f" (tokenizer {tokenizer}, fetched or cached; without it texts cannot be encoded)" if tokenizer else ""
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    return SourceFacts(
        source=source,
        kind="open_clip",
        where=str(found or repo or tag),
        sha256=None if found is None else files_hash([found]),
        licence=None,
        arch=arch,
        mean=mean,
        std=std,
        cls_tokens=1,
        registers=registers,
        position_grid=grid,
        image_size=size // arch.patch * arch.patch,
        image_parameters=image,
        text_parameters=count(pair) - image,
        texts=f"text tower, {pair.vocab_size:,} tokens, {_context(name)} a text{of}",
        projected=config["embed_dim"],
        missing=None if found else missing_weights(source, repo, f"open_clip:{name}/{tag}@/path/weights.safetensors"),
        notes=(QUICK_GELU,) if quick_gelu else (),
    )


def _clip_arch(name: str, trunk: Any, patch: int) -> Arch:
    """The blocks of open_clip's own tower as plain numbers."""
    block = trunk.resblocks[0]
    mlp, heads = block.mlp.c_fc.out_features, block.attn.num_heads
    return Arch(name, patch, trunk.width, trunk.layers, heads, mlp, "gelu", 0, 0)
