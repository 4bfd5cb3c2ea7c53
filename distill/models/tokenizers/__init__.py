"""Tokenizers: `words` (trained on the captions), `clip` (open_clip's BPE) and SentencePiece models."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from distill.config.schema import TextConfig
from distill.errors import UserError, did_you_mean, unknown
from distill.models.tokenizers.base import Encoded, Tokenizer
from distill.models.tokenizers.clip import ClipTokenizer
from distill.models.tokenizers.hf import HfTokenizer
from distill.models.tokenizers.open_clip import OpenClipTokenizer
from distill.models.tokenizers.sentence_piece import SentencePieceTokenizer
from distill.models.tokenizers.words import WordsTokenizer

__all__ = ["STATE", "Encoded", "Tokenizer", "build_tokenizer", "load_tokenizer", "read_tokenizer"]

STATE = "tokenizer_state.json"  # beside an export: the `state()` of a tokenizer that has no usual file

_LOADERS: dict[str, Callable[[dict[str, Any]], Tokenizer]] = {
    "words": lambda state: WordsTokenizer(state["words"]),
    "clip": lambda state: ClipTokenizer(),
    "hf": lambda state: HfTokenizer(state["content"]),
    "open_clip": lambda state: OpenClipTokenizer(state["name"]),
    "sentencepiece": lambda state: SentencePieceTokenizer(base64.b64decode(state["model"])),
}


def build_tokenizer(cfg: TextConfig, captions: Iterable[str], needed: bool = True) -> Tokenizer:
    """The tokenizer that `text.tokenizer` names. Only `words` reads `captions`, once; `needed`: there must be some.

    Raises `UserError` for an unknown name, a missing file, a file that is not a SentencePiece model, or no captions.
    """
    name = cfg.tokenizer
    if name == "words":
        return WordsTokenizer.train(captions, cfg.vocabulary, needed)
    if name == "clip":
        return ClipTokenizer()
    if "/" in name or "." in name:
        return SentencePieceTokenizer.from_file(name)
    hint = did_you_mean(name, ("words", "clip"))
    raise UserError(
        f"Unknown tokenizer '{name}'.{hint} Allowed: clip, words, or the path of a SentencePiece .model file."
    )


def load_tokenizer(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer whose `state()` this is; needs no other file."""
    kind = state.get("kind", "")
    if kind not in _LOADERS:
        raise unknown("tokenizer kind", str(kind), _LOADERS)
    return _LOADERS[kind](state)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file: SentencePiece's .model, Hugging Face's tokenizer.json, or a STATE that an export wrote.

    Raises `UserError` for a damaged file.
    """
    if path.suffix == ".model":
        return SentencePieceTokenizer.from_file(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.name != STATE:
            return HfTokenizer(text, str(path))
        return load_tokenizer(json.loads(text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"Cannot read the tokenizer {path}: {error}. Give the file that was written with it."
        ) from error
