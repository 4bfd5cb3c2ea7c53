"""What two results must share to be compared."""

import re

import numpy as np
import pytest
from PIL import Image

from distill.cli import main
from distill.errors import UserError
from distill.evals.compare import compare_results
from distill.models.loading import save_model


def result(task="knn", metric="top1_cls1", counts=None, **protocol):
    return {
        "task": task,
        "dataset": "d",
        "metrics": {metric: 0.5},
        "protocol": {"k": [3], **protocol},
        "counts": {"images": 4, **(counts or {})},
        "per_image": {},
    }


def refused(one, two, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compare_results("knn", one, two)


def test_a_key_that_only_one_has_is_a_difference_too():
    refused(result(window=None), result(), "the first has protocol window = None, the second has none, so the two")
    refused(result(), result(window=None), "the first has no protocol window, the second None, so the two")


@pytest.mark.parametrize(
    ("task", "metric", "resource"),
    [
        ("linear_seg", "miou", "memory"),
        ("depth", "rmse", "memory"),
        ("normals", "rmse", "memory"),
        ("zeroshot_seg", "miou_value", "chunk"),
    ],
)
def test_what_a_task_may_use_up_keeps_nobody_from_comparing(task, metric, resource):
    """Files of earlier versions have it among the protocol, and differ in it."""
    (line,) = compare_results(task, result(task, metric, **{resource: 4}), result(task, metric, **{resource: 8}))
    assert line.metric == metric
    assert compare_results(task, result(task, metric, **{resource: 4}), result(task, metric))


def test_splits_fitted_on_differ():
    one, two = result(fitted_on="voc21 train, 2 images"), result(fitted_on="voc21 trainaug, 2 images")
    refused(one, two, "knn: the first has protocol fitted_on = 'voc21 train, 2 images', the second 'voc21 trainaug, 2")
    refused(one, result(), "the first has protocol fitted_on = 'voc21 train, 2 images', the second has none")


@pytest.mark.parametrize("count", ["train_images", "index_images"])
def test_results_of_earlier_versions_say_only_how_many_were_fitted_on(count):
    one, two = result(counts={count: 8}), result(counts={count: 60})
    refused(one, two, f"knn: the first has counts {count} = 8, the second 60, so the two cannot be compared")
    assert compare_results("knn", one, one)


def with_inputs(contents, fitted=None, images=4):
    split = {"name": "shards:a", "images": images, "contents": contents * 8, "files": "0"}
    other = None if fitted is None else {**split, "contents": fitted * 8}
    return {
        **result(counts={"images": images}),
        "inputs": {"dataset": f"shards:{contents}", "images": split, "fitted": other},
    }


def test_images_of_one_name_and_number_that_differ():
    refused(
        with_inputs("a"),
        with_inputs("b"),
        "knn: the first was measured on shards:a (4 images, aaaaaaaa) of shards:a, the second on shards:a (4 images, "
        "bbbbbbbb) of shards:b: other images or labels, so the two cannot be compared.",
    )
    refused(with_inputs("a", "c"), with_inputs("a", "d"), "knn: the first was fitted on shards:a (4 images, cccccccc)")
    assert compare_results("knn", with_inputs("a", "c"), with_inputs("a", "c"))
    assert compare_results("knn", with_inputs("a"), result())  # written by an earlier version
    (line,) = compare_results("knn", with_inputs("a"), with_inputs("b", images=5))
    assert line.dataset == "d, 4 and 5 images"


def test_models_fitted_on_different_splits_are_not_compared(tiny_model, tmp_path, capsys):
    save_model(tiny_model, tmp_path / "model.pt")
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for at in range(2 if split == "test" else 3):
            for name in ("cat", "dog"):
                path = tmp_path / f"pets/{split}/{name}/{at}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    asked = {"all": [], "few": ["--samples", "4"], "other": ["?train=validation"]}
    for name, more in asked.items():
        spec = f"knn=folder:{tmp_path}/pets" + (more[0] if more[:1] == ["?train=validation"] else "")
        words = [spec, "knn.k=1", "--size", "32", "--device", "cpu", "--json", str(tmp_path / f"{name}.json")]
        assert main(["eval", str(tmp_path / "model.pt"), *words, *(more if name == "few" else [])]) == 0
    capsys.readouterr()
    for name, second in (("few", "folder:pets train, 4 images"), ("other", "folder:pets validation, 6 images")):
        assert main(["eval", "--compare", str(tmp_path / "all.json"), str(tmp_path / f"{name}.json")]) == 2
        message = f"protocol fitted_on = 'folder:pets train, 6 images', the second '{second}', so the two cannot"
        assert message in capsys.readouterr().err
    assert main(["eval", "--compare", str(tmp_path / "all.json"), str(tmp_path / "all.json")]) == 0
