"""`hf:REPO_OR_FOLDER`: TIPSv2 as transformers keeps it (`config.json`, `model.safetensors`, a tokenizer), as ours.

The files hold the official PyTorch arrays under the prefixes `vision_encoder.` and `text_encoder.`, so they are read
through the same key map as the official ones and checked against what `config.json` says; no code of the repository
runs. `config.json` says how long texts are, `preprocessor_config.json` (without it `config.json`) how large images. A
repository is fetched where there is a network and it is not cached. Other models: see timm: and open_clip:.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from distill.errors import UserError
from distill.models import official, official_variants
from distill.models.adapted import AdaptedModel
from distill.models.npz import mismatches
from distill.models.pair import ImageTextModel
from distill.models.positions import sinusoids
from distill.models.sources.base import NO_NORMALISATION, OpenedModel, SourceFacts, count, files_hash
from distill.models.sources.hub import NotHere, cached_file, fetch_failed, missing_weights
from distill.models.text import TextTower
from distill.models.tokenizers import STATE, read_tokenizer
from distill.models.vision import NORM_EPS, VisionTower
from distill.models.weights import read_weights

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PREPROCESSOR = "preprocessor_config.json"
TOKENIZERS = ("tokenizer.model", "tokenizer.json", STATE)
VISION, TEXT = "vision_encoder.", "text_encoder."
ACTIVATIONS = {"gelu": "erf", "gelu_pytorch_tanh": "tanh"}
# names that versions of transformers wrote for the same array
_ALIASES = {"vision_model.": VISION, "text_model.": TEXT}
_NEEDED = {  # what is said of a folder or repository without it
    CONFIG: "give the folder of a model that transformers saved",
    WEIGHTS: "PyTorch pickles are not read; save it as safetensors",
}
_MLP_ALIASES = {".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2."}


@dataclass
class _Folder:
    """The files of one model on this machine."""

    config: dict[str, Any]
    preprocessor: dict[str, Any]  # empty where there is none
    weights: list[Path]
    tokenizer: Path | None
    licence: str | None


def open_source(source: str, where: str) -> OpenedModel:
    folder = _find(source, where, fetch=True)
    assert folder is not None
    towers = _towers(folder)
    image, text = towers
    arrays = {_canonical(name): value.float() for file in folder.weights for name, value in read_weights(file).items()}
    _fill(image, {name.removeprefix(VISION): value for name, value in arrays.items() if name.startswith(VISION)})
    facts = _facts(source, where, folder, towers)
    if text is None:
        return OpenedModel(source, AdaptedModel(image, facts.image_size), facts)
    _fill(text, {name.removeprefix(TEXT): value for name, value in arrays.items() if name.startswith(TEXT)})
    text.register_buffer("positions", sinusoids(text.context, text.width), persistent=False)
    temperature = _temperature(source, folder, arrays)
    if folder.tokenizer is None:
        return OpenedModel(source, AdaptedModel(image, facts.image_size, text, None, temperature), facts)
    tokenizer = read_tokenizer(folder.tokenizer)
    return OpenedModel(source, ImageTextModel(image, text, tokenizer, temperature, facts.image_size), facts)


def describe_source(source: str, where: str) -> SourceFacts:
    folder = _find(source, where, fetch=False)
    if folder is None:
        raise NotHere(
            f"{missing_weights(source, where, 'hf:/path/to/folder')} (with {CONFIG}, {WEIGHTS} and a tokenizer)."
        )
    return _facts(source, where, folder, _towers(folder))


def _find(source: str, where: str, fetch: bool) -> _Folder | None:
    """The model's files: in a folder, in the hub's cache, or fetched; None when they are not here and not fetched."""
    root = Path(where).expanduser()
    local = root.is_dir()
    if not local and (root.is_absolute() or where.count("/") != 1):
        raise UserError(f"No folder at {root}. Give a folder with {CONFIG} and {WEIGHTS}, or a repository OWNER/NAME.")

    def get(name: str, needed: bool = False) -> Path | None:
        """The file, or None; where it is `needed`, None only for what could still be fetched."""
        if local:
            found = root / name if (root / name).is_file() else None
        else:
            found = cached_file(where, [name])
        if found is None and not local and fetch:
            found = _fetched(source, where, name, needed)
        if found is None and needed and (local or fetch):
            raise UserError(f"{root} has no {name}: {_NEEDED.get(name, f'{INDEX} names it. Get it again')}.")
        return found

    config = get(CONFIG, needed=True)
    if config is None:
        return None
    content = _config(config)
    weights = _weights(get)
    if not weights:
        return None
    tokenizer = next((path for name in TOKENIZERS if (path := get(name)) is not None), None)
    preprocessor = get(PREPROCESSOR)
    said = {} if preprocessor is None else _json(preprocessor)
    return _Folder(content, said, weights, tokenizer, _licence(get("README.md")))


def _fetched(source: str, repo: str, name: str, needed: bool) -> Path | None:
    """A file from the hub; None where the repository has none, and where one that is not `needed` cannot be had."""
    try:
        return Path(hf_hub_download(repo, name))
    except Exception as error:  # network, hub and cache raise many types
        absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        if needed and not absent:
            raise fetch_failed(source, repo, "hf:/path/to/folder", error) from error
        return None


def _weights(get: Callable[..., Path | None]) -> list[Path]:
    """The one file of weights, or the shards that an index names; empty where not all are here and none is fetched."""
    index = None if get(WEIGHTS) else get(INDEX)
    names = [WEIGHTS] if index is None else sorted(set(json.loads(index.read_text())["weight_map"].values()))
    files = [path for name in names if (path := get(name, needed=True)) is not None]
    return files if len(files) == len(names) else []


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is not a model's configuration: it is damaged or not JSON. Get it again.")


def _config(path: Path) -> dict[str, Any]:
    content = _json(path)
    kind = content.get("model_type")
    if kind != "tipsv2":
        raise UserError(
            f"{path} is of a {kind} model. Allowed: tipsv2. For others see timm:NAME and open_clip:NAME/TAG."
        )
    return content


def _licence(card: Path | None) -> str | None:
    """What the model card's header says after "license:"."""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()[:40] if card is not None else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), None)


def _towers(folder: _Folder) -> tuple[VisionTower, TextTower | None]:
    """Both towers on the meta device, from the shapes in the files; heads and epsilon from the configuration."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in folder.weights:
        try:
            with safe_open(file, framework="pt") as content:
                shapes |= {_canonical(name): tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"Cannot read {file}: it is truncated, damaged or no safetensors file.") from error
    where = str(folder.weights[0])
    image = _tower(where, VISION, _below(shapes, VISION), folder.config.get("vision_config", {}))
    if image is None:
        first = ", ".join(list(shapes)[:3]) or "nothing"
        raise UserError(f"{where} holds no image tower of TIPSv2: it holds {first}.")
    text = _tower(where, TEXT, _below(shapes, TEXT), folder.config.get("text_config", {}))
    assert isinstance(image, VisionTower)
    image = _with_activation(image, folder.config.get("vision_config", {}))
    if text is None:
        return image, None
    assert isinstance(text, TextTower)
    text = _with_context(text, folder.config.get("text_config", {}))
    image.arch = text.arch = replace(image.arch, text_layers=text.layers, text_mlp=text.arch.text_mlp)
    return image, text


def _tower(
    where: str, prefix: str, shapes: Mapping[str, tuple[int, ...]], config: dict[str, Any]
) -> VisionTower | TextTower | None:
    if not shapes:
        return None
    heads = config.get("num_attention_heads")
    build = official_variants.vision_tower if prefix == VISION else official_variants.text_tower
    try:
        tower = build(shapes, "torch", heads)
        expected = {name: tuple(value.shape) for name, value in official.to_official(tower, "torch").items()}
    except (KeyError, ValueError, IndexError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{where} holds no whole {prefix[:-1]}: {reason} is missing or has another shape.") from error
    wrong = mismatches(shapes, expected)
    if wrong:
        raise UserError(f"{where}: {prefix[:-1]} does not fit the shape it seems to be, {tower.arch}: {wrong}.")
    return tower


def _with_activation(image: VisionTower, config: dict[str, Any]) -> VisionTower:
    """The tower with the GELU that the configuration names; released models have the exact one."""
    said, eps = config.get("hidden_act", "gelu"), config.get("layer_norm_eps", NORM_EPS)
    if said not in ACTIVATIONS or eps != NORM_EPS:
        allowed = f"hidden_act {' or '.join(ACTIVATIONS)}, layer_norm_eps {NORM_EPS:g}"
        raise UserError(f"{CONFIG}: vision_config has hidden_act {said}, layer_norm_eps {eps:g}. Allowed: {allowed}.")
    with torch.device("meta"):
        return VisionTower.from_config({**image.config(), "gelu": ACTIVATIONS[said]})


def _with_context(text: TextTower, config: dict[str, Any]) -> TextTower:
    """The tower with the length of texts and the epsilon that the configuration names (released: 64, 1e-5)."""
    context, eps = config.get("max_position_embeddings", text.context), config.get("layer_norm_eps", text.norm_eps)
    if type(context) is not int or context < 1:
        raise UserError(
            f"{CONFIG}: text_config has max_position_embeddings {context}. Allowed: a whole number above 0."
        )
    with torch.device("meta"):
        return TextTower.from_config({**text.config(), "context": context, "norm_eps": eps})


def _image_size(folder: _Folder, image: VisionTower) -> int:
    """Pixels of either side of a preprocessed image, in whole patches; the positions' where no file says it."""
    said = folder.preprocessor.get("size") or folder.config.get("vision_config", {}).get("image_size")
    size = said or image.position_grid * image.patch
    sides = list(size.values()) if isinstance(size, dict) else size if isinstance(size, list) else [size]
    if not all(type(side) is int and side == sides[0] >= image.patch for side in sides):
        raise UserError(
            f"{PREPROCESSOR} or {CONFIG} has the image size {said}. Allowed: height and width the same whole number, "
            f"at least the patch's {image.patch}."
        )
    return sides[0] // image.patch * image.patch


def _below(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _canonical(name: str) -> str:
    """The name as the released files have it."""
    for alias, prefix in _ALIASES.items():
        if name.startswith(alias):
            name = prefix + name.removeprefix(alias)
    if name.startswith(VISION):
        for alias, own in _MLP_ALIASES.items():
            name = name.replace(alias, own)
    return name


def _fill(tower: VisionTower | TextTower, arrays: Mapping[str, torch.Tensor]) -> None:
    state = official.read_tower(arrays, official.rows_of(tower, "torch"))
    tower.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)


def _temperature(source: str, folder: _Folder, arrays: Mapping[str, torch.Tensor]) -> float:
    """The contrastive temperature: with the weights, or in the configuration, where released models keep it."""
    found = arrays.get("temperature", folder.config.get("temperature_init_value"))
    if found is None or not 0 < float(found) < float("inf"):
        raise UserError(f"{source}: temperature_init_value in {CONFIG} is {found}: it must be a number above 0.")
    return float(found)


def _facts(source: str, where: str, folder: _Folder, towers: tuple[VisionTower, TextTower | None]) -> SourceFacts:
    image, text = towers
    if text is None:
        texts = "no text tower"
    elif folder.tokenizer is None:
        texts = f"a text tower, but no tokenizer: put {TOKENIZERS[0]} beside the weights for tasks with texts"
    else:
        texts = f"text tower, {text.vocabulary:,} tokens, {text.context} a text"
    return SourceFacts(
        source=source,
        kind="hf",
        where=" + ".join(map(str, folder.weights)),
        sha256=files_hash(folder.weights),
        licence=folder.licence,
        arch=image.arch,
        mean=NO_NORMALISATION[0],
        std=NO_NORMALISATION[1],
        cls_tokens=image.cls_tokens,
        registers=0,
        position_grid=(image.position_grid, image.position_grid),
        image_size=_image_size(folder, image),
        image_parameters=count(image),
        text_parameters=count(text),
        texts=texts,
        vocabulary=None if text is None or folder.tokenizer is None else text.vocabulary,
        variant=official_variants.variant(image.arch, image.position_grid),
    )
