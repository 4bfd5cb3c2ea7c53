"""A kept result is taken again only where running again would give the same."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from distill.cli import main
from distill.evals.datasets import open_dataset
from distill.evals.knn import NearestNeighbours
from distill.evals.report import identity, model_hash
from distill.evals.requests import Request
from distill.evals.store import REVISION, Store, inputs_of
from distill.models.loading import save_model
from distill.models.pair import ImageTextModel
from distill.models.text import TextTower
from distill.models.tokenizers.words import WordsTokenizer
from distill.models.vision import VisionTower

MODEL = {"source": "a", "sha256": "0" * 64, "tokenizer": None, "towers": "1" * 64}


@pytest.fixture
def model_file(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


@pytest.fixture
def pets(tmp_path):
    """Two classes, 12 images to fit on and 4 to evaluate."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for at in range(2 * count):
            path = tmp_path / f"pets/{split}/{'cat' if at < count else 'dog'}/{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pets"


@pytest.fixture
def measure(model_file, tmp_path, capsys):
    """Runs `distill eval` with --json; returns what it printed, and the results in the file."""

    def run(*words, model=model_file, to="out.json"):
        assert main(["eval", model, *words, "--size", "32", "--device", "cpu", "--json", str(tmp_path / to)]) == 0
        return capsys.readouterr().out, json.loads((tmp_path / to).read_text())["results"]

    return run


def again(said):
    """What was computed again, and why."""
    return [line.removeprefix("computed again: ") for line in said.splitlines() if line.startswith("computed again")]


def test_the_train_split_decides_too(measure, pets):
    """With 4 test images, --samples 4 and no --samples evaluate the same; the memory of knn is another."""
    words = [f"knn=folder:{pets}", "knn.k=1"]
    assert measure(*words, "--samples", "4")[1]["knn"]["counts"]["train_images"] == 4
    said, results = measure(*words)
    assert again(said) == ["knn (samples was 4, is None)"]
    assert results["knn"]["counts"] == {"images": 4, "train_images": 12, "classes": 2}
    assert results["knn"]["protocol"]["fitted_on"] == "folder:pets train, 12 images"
    assert "where they were finished: knn" in measure(*words)[0]
    (pets / "train/cat/0.png").unlink()
    said, results = measure(*words)
    assert again(said) == ["knn (fitted.images was 12, is 11)"] and results["knn"]["counts"]["train_images"] == 11


def test_a_replaced_image_is_noticed(measure, pets):
    words = [f"knn=folder:{pets}", "knn.k=1", f"zeroshot_cls=folder:{pets}", "zeroshot_cls.prompts=plain"]
    measure(*words)
    for name in ("0", "1"):
        Image.new("RGB", (32, 32), (200, 0, 0)).save(pets / f"test/cat/{name}.png")
    said, _ = measure(*words)
    why = "the files of folder:pets test have changed"
    assert again(said) == [f"knn ({why})", f"zeroshot_cls ({why})"]
    changed = (pets / "train/dog/11.png").stat()
    os.utime(pets / "train/dog/11.png", ns=(changed.st_atime_ns, changed.st_mtime_ns + 1))
    said, _ = measure(*words)
    assert again(said) == ["knn (the files of folder:pets train have changed)"]  # the other fits nothing
    assert "where they were finished: zeroshot_cls" in said
    assert again(measure(*words)[0]) == []


def other_words(model):
    """The same weights; its tokenizer has the words in another order."""
    tokenizer = WordsTokenizer(model.tokenizer.words[::-1])
    spec = model.spec()
    towers = VisionTower.from_config(spec["vision"]), TextTower.from_config(spec["text"])
    other = ImageTextModel(*towers, tokenizer, image_size=model.image_size)
    other.load_state_dict(model.state_dict())
    return other


def test_another_tokenizer_is_another_model(measure, tiny_model, tmp_path, capsys):
    words = ["retrieval=scenes:32", "--samples", "4"]
    measure(*words)
    other = other_words(tiny_model)
    assert model_hash(other) == model_hash(tiny_model)
    save_model(other, tmp_path / "other.pt")
    common = ["--device", "cpu", "--json", str(tmp_path / "out.json")]
    assert main(["eval", str(tmp_path / "other.pt"), *words, *common]) == 2
    assert f"{model_hash(other)[:12]}, with another tokenizer)" in capsys.readouterr().err


def test_what_weights_do_not_tell_of_a_model(tiny_model):
    before = identity(tiny_model)
    assert before == identity(tiny_model) and None not in before.values()
    other = identity(other_words(tiny_model))
    assert other["tokenizer"] != before["tokenizer"] and {**other, "tokenizer": before["tokenizer"]} == before
    tiny_model.image.gelu = "erf"
    assert {**identity(tiny_model), "towers": before["towers"]} == before != identity(tiny_model)


def test_a_foreign_models_normalisation_and_layers_are_told():
    import timm

    from distill.models.adapted import AdaptedModel
    from distill.models.sources.timm import TimmTower

    def made(mean, **options):
        torch.manual_seed(0)
        trunk = timm.create_model("vit_tiny_patch16_224", embed_dim=16, num_heads=2, depth=1, num_classes=0, **options)
        return identity(AdaptedModel(TimmTower(trunk, [mean] * 3, [1.0] * 3), 32))

    one = made(0.5)
    assert one == made(0.5) and one["tokenizer"] is None
    for other in (made(0.4), made(0.5, act_layer=torch.nn.SiLU)):
        assert other["sha256"] == one["sha256"] and other["towers"] != one["towers"]


def inputs(task, dataset, **options):
    return inputs_of(MODEL, Request(task, dataset, options), open_dataset(dataset, samples=4), 4)


def test_the_content_of_a_file_that_an_option_names(tmp_path):
    file = tmp_path / "head.npz"
    found = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        found.append(inputs("depth", "scenes:32", weights=str(file)))
    assert found[0]["files"] != found[1]["files"] and found[0]["fitted"] is None
    file.rename(tmp_path / "moved.npz")
    assert inputs("depth", "scenes:32", weights=str(tmp_path / "moved.npz")) == found[1]
    assert inputs("depth", "scenes:32")["files"] == {}


def test_what_a_task_may_use_up_does_not_decide(measure):
    words = ["linear_seg=scenes:32", "linear_seg.steps=2", "--samples", "4"]
    measure(*words)
    assert "where they were finished: linear_seg" in measure(*words, "linear_seg.memory=2")[0]
    assert again(measure(*words, "linear_seg.images=2")[0]) == ["linear_seg (options.images was 16, is 2)"]


def test_a_task_whose_numbers_have_changed_is_computed_again(measure, monkeypatch):
    words = ["knn=scenes:32", "retrieval=scenes:32", "--samples", "4"]
    measure(*words)
    monkeypatch.setattr(NearestNeighbours, "revision", NearestNeighbours.revision + 1)
    assert again(measure(*words)[0]) == [f"knn (revision was [{REVISION}, 1], is [{REVISION}, 2])"]


def test_results_of_earlier_versions_are_read_and_computed_again(measure, tmp_path):
    words = ["knn=scenes:32", "--samples", "4"]
    _, results = measure(*words, "retrieval=scenes:32")
    content = json.loads((tmp_path / "out.json").read_text())
    content["model"] = {name: content["model"][name] for name in ("source", "sha256")}
    for result in content["results"].values():
        result.pop("inputs")
        result |= {"key": "0" * 64, "model": content["model"]}
    (tmp_path / "out.json").write_text(json.dumps(content))
    said, now = measure(*words)
    assert again(said) == ["knn (an earlier version wrote it, without all that it depends on)"]
    assert now["knn"]["metrics"] == results["knn"]["metrics"] and now["knn"]["inputs"] == results["knn"]["inputs"]
    assert now["retrieval"] == content["results"]["retrieval"]  # not asked for: left as it is


def test_a_store_says_nothing_of_what_is_not_there():
    store = Store(None, {"model": MODEL, "versions": {}})
    found = inputs("knn", "scenes:32")
    assert store.changed("knn", found) is None and store.finished("knn", found) is None
    store.add("knn", found, {"metrics": {}})
    assert store.changed("knn", found) is None and store.finished("knn", found) is not None
    assert store.changed("knn", inputs("knn", "scenes:32", k=3)) == "options.k was [10, 20, 100, 200], is [3]"


@pytest.mark.parametrize("layout", ["folders", "captions"])
def test_other_colours_of_the_same_masks_are_noticed(measure, tmp_path, layout):
    root = tmp_path / "coded"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (9, 0, 0)).save(root / name / "a.png")
    if layout == "captions":
        (root / "captions.jsonl").write_text('{"image": "images/a.png", "mask": "masks/a.png"}')
    words = [f"zeroshot_seg=folder:{root}", "zeroshot_seg.prompts=plain"]
    found = []
    for colours in ([[9, 0, 0], [0, 9, 0]], [[0, 9, 0], [9, 0, 0]]):
        (root / "classes.json").write_text(json.dumps({"classes": ["ball", "box"], "colours": colours}))
        os.utime(root / "classes.json", ns=(0, len(found)))  # the clock may not have moved
        said, results = measure(*words)
        found.append(results["zeroshot_seg"]["details"]["iou_final"])
    assert again(said) == ["zeroshot_seg (the files of folder:coded all have changed)"] and found[0] != found[1]


def test_two_evaluations_into_one_file_keep_each_others_results(tmp_path):
    path, header = tmp_path / "out.json", {"model": MODEL, "versions": {}}
    result = {"metrics": {}, "counts": {}, "dataset": "d"}

    def labels():
        assert not list(tmp_path.glob("*.part"))
        return set(json.loads(path.read_text())["results"])

    one, two = Store(path, header), Store(path, header)
    one.add("knn", {"at": 1}, result)
    two.add("retrieval", {}, result)
    two.add("knn", {"at": 2}, result)
    one.add("depth", {}, result)
    assert labels() == {"knn", "retrieval", "depth"}
    assert json.loads(path.read_text())["results"]["knn"]["inputs"] == {"at": 1}  # each writes what it made last
    anew = Store(path, header, again=True)
    anew.add("normals", {}, result)
    assert labels() == {"normals"}
    Store(path, header).add("knn", {}, result)
    anew.add("locality", {}, result)
    assert labels() == {"normals", "knn", "locality"}
