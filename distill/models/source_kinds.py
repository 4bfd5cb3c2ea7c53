"""The kinds of sources and how they are written. Knows nothing of torch, so that recipes are checked quickly."""

from __future__ import annotations

from pathlib import Path

KINDS = {
    "run": "run:PATH[#NAME]",
    "file": "file:X.safetensors",
    "tips": "tips:VISION.npz[+TEXT.npz][+TOKENIZER.model]",
    "timm": "timm:NAME[.TAG][@FILE]",
    "open_clip": "open_clip:NAME/TAG[@FILE]",
    "hf": "hf:REPO_OR_FOLDER",
}


def split(source: str) -> tuple[str, str]:
    """(kind, where) of a source string; without a kind it is the path of a run or checkpoint."""
    kind, colon, where = source.partition(":")
    if not colon or Path(source.partition("#")[0]).exists():
        return "run", source
    return kind, where
