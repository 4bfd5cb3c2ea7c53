"""The verb and the model card."""

from __future__ import annotations

import json
import textwrap

import pytest
import timm
from torch import nn

import distill
from distill.cli import main
from distill.errors import UserError
from distill.evals.registry import find_task
from distill.evals.report import model_hash
from distill.export import run as export_run
from distill.export.base import save_tokenizer
from distill.export.card import tokenising
from distill.models.sources.base import OpenedModel
from distill.models.sources.file import save_safetensors
from distill.models.sources.timm import as_tower


def test_the_verb_writes_a_run_with_its_recipe_and_results(small_run, tmp_path, capsys, monkeypatch):
    small_run("a", **{"train.steps": 1})
    results = {"zeroshot_cls": {"task": "zeroshot_cls", "dataset": "scenes", "metrics": {}, "counts": {"images": 4}}}
    task = find_task("zeroshot_cls")
    results["zeroshot_cls"]["metrics"] = {task.headline[0]: 0.4321}
    monkeypatch.chdir(tmp_path)
    content = {
        "model": {"source": "a", "sha256": model_hash(distill.load("run:a"))},
        "versions": {},
        "results": results,
    }
    (tmp_path / "a" / "eval.json").write_text(json.dumps(content))
    other = {"another": results["zeroshot_cls"]}
    (tmp_path / "a" / "other.json").write_text(
        json.dumps({**content, "model": {"source": "b", "sha256": "0"}, "results": other})
    )
    assert main(["export", "run:a", "--to", "safetensors"]) == 0
    assert "written: a-safetensors, equal to the original within 0" in capsys.readouterr().out
    card = (tmp_path / "a-safetensors" / "README.md").read_text()
    for words in ("license: unknown", 'distill.load("file:a-safetensors/model.safetensors")', "Teacher: mode",
                  "```yaml", f"| zeroshot_cls | scenes | {task.headline[0]} | 43.2 % |", "resized to 32 x 32 px",
                  "at most 16 a text", f"everypatch {distill.__version__}"):  # fmt: skip
        assert words in card
    assert "another" not in card
    assert main(["export", "run:a", "--to", "safetensors"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_card_names_what_the_model_was_made_from_with_its_licence(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = "file:given.safetensors"
    small_run("a", **{"train.steps": 1})
    save_safetensors(distill.load("run:a"), tmp_path / "given.safetensors", licence="CC-BY-4.0")
    small_run("b", **{"train.steps": 1, "teacher.mode": "frozen", "teacher.source": given})
    small_run("c", **{"train.steps": 1, "text.init": "run:b"})
    second = {"train.stage_from": "run:c", "train.checkpoint_every": 1}
    small_run("d", **second, **{"train.steps": 1})
    for name in ("b", "c"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    small_run("d", resume=True, **second, **{"train.steps": 2})
    distill.export("run:d", "safetensors")
    card = (tmp_path / "d-safetensors" / "README.md").read_text()
    assert "- Made from `run:c` (train.stage_from): licence unknown, SHA-256 `" in card
    assert f"- Made from `{given}` (train.stage_from, text.init, teacher.source): licence CC-BY-4.0, SHA-256 `" in card


def test_the_card_shows_how_texts_become_ids(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_run("a", **{"train.steps": 1})
    model = distill.load("run:a")
    lines = tokenising(save_tokenizer(model.tokenizer, tmp_path), model.text.context)
    names: dict = {}
    exec(textwrap.dedent("\n".join(line for line in lines if "```" not in line)), names)
    ids, valid, _ = model.tokenizer.encode(["a red disc"], model.text.context)
    assert (names["ids"] == ids).all() and (names["valid"] == valid).all()
    assert tokenising("tokenizer.model", 16) == []


@pytest.mark.parametrize("to", ["timm", "hf", "onnx", "tips", "safetensors"])
def test_a_foreign_model_is_refused_with_what_can_be(to, tmp_path, monkeypatch):
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, dynamic_img_size=True)
    model = nn.Module()
    model.image = as_tower(trunk, "vit_tiny_patch16_224")
    opened = OpenedModel("timm:vit_tiny_patch16_224", model, facts=None)
    monkeypatch.setattr(export_run, "open_model", lambda source: opened)
    with pytest.raises(UserError, match=rf"TimmTower, which cannot be exported to {to}\. Allowed: models of our own"):
        distill.export("timm:vit_tiny_patch16_224", to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
