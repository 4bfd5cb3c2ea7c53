"""Files of hf: sources that are not all there: what could not be fetched, and what a repository does not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

from distill.errors import UserError
from distill.models.sources import describe, hf, open_model

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
CONTENT = {
    "config.json": {"model_type": "tipsv2"},
    "model.safetensors.index.json": {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}},
}


def write(folder: Path, name: str) -> Path:
    (folder / name).write_text(json.dumps(CONTENT.get(name, "")))
    return folder / name


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`hub(files, error)`: a repository with an empty cache; other files than `files` end in `error`."""

    def serve(files: list[str], error: Exception) -> None:
        def download(repo: str, name: str) -> str:
            if name not in files:
                raise error
            return str(write(tmp_path, name))

        monkeypatch.setattr(hf, "cached_file", lambda repo, names: None)
        monkeypatch.setattr(hf, "hf_hub_download", download)

    return serve


ABSENT = EntryNotFoundError("404")
LOST = ConnectionError("the network is down")


@pytest.mark.parametrize(
    ("files", "error", "match"),
    [
        ([], ABSENT, "google/x has no config.json: give the folder"),
        ([], LOST, "looked for google/x in the cache .* ended with: .*the network is down"),
        (["config.json"], ABSENT, "google/x has no model.safetensors: PyTorch pickles are not read"),
        (["config.json"], LOST, "looked for google/x in the cache .* ended with: .*the network is down"),
        (["config.json"], LocalEntryNotFoundError("offline"), "looked for google/x in the cache .*offline"),
        ([*CONTENT, SHARDS[0]], LOST, "looked for google/x in the cache .* ended with: .*the network is down"),
        ([*CONTENT, SHARDS[0]], ABSENT, f"google/x has no {SHARDS[1]}: model.safetensors.index.json names it"),
    ],
)
def test_what_cannot_be_fetched_is_said(hub, files, error, match):
    hub(files, error)
    with pytest.raises(UserError, match=match):
        open_model("hf:google/x")


def test_shards_that_are_half_there_are_not_here(tmp_path, monkeypatch):
    files = {name: write(tmp_path, name) for name in [*CONTENT, SHARDS[0]]}
    monkeypatch.setattr(hf, "cached_file", lambda repo, names: files.get(names[0]))
    with pytest.raises(UserError, match="its weights are not on this machine; looked for google/x"):
        describe("hf:google/x")


def test_a_folder_without_a_shard_that_its_index_names_is_refused(tmp_path):
    for name in [*CONTENT, SHARDS[0]]:
        write(tmp_path, name)
    for look in (describe, open_model):
        with pytest.raises(UserError, match=f"{tmp_path} has no {SHARDS[1]}: model.safetensors.index.json names it"):
            look(f"hf:{tmp_path}")
