"""Weights that a registry holds: where they lie on this machine once fetched, and what to say when they do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from distill.errors import UserError
from distill.models.weights import shorten


class NotHere(UserError):
    """A model of which nothing is known until it is fetched, as it will be when it is opened."""


def cached_file(repo: str | None, names: Sequence[str]) -> Path | None:
    """The first of the files `names` of a Hugging Face repository that is in this machine's cache."""
    if not repo:
        return None
    for name in names:
        found = try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            return Path(found)
    return None


def missing_weights(source: str, repo: str | None, offline: str) -> str:
    """What is said of a source whose weights are not on this machine; `offline` is the form that takes a file."""
    looked = f"{repo} in the cache {constants.HF_HUB_CACHE}" if repo else "a copy in the cache"
    fetch = f" (or by: hf download {repo})" if repo else ""
    return (
        f"{source}: its weights are not on this machine; looked for {looked}. They are fetched when it is opened with "
        f"a network{fetch}; without one, give a file: {offline}"
    )


def fetch_failed(source: str, repo: str | None, offline: str, error: Exception) -> UserError:
    return UserError(f"{missing_weights(source, repo, offline)}. The attempt ended with: {shorten(error, 160)}.")
