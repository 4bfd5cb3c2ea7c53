import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from distill.cli import main
from distill.errors import UserError
from distill.evals import suite as suites
from distill.evals.cli import choose_device
from distill.evals.compare import Line
from distill.evals.report import identity, model_hash, show_comparison
from distill.evals.requests import parse_value, parse_words, read_suite
from distill.evals.retrieval import Retrieval
from distill.models.loading import save_model


@pytest.fixture
def model_file(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


def test_prints_a_table_and_stores_everything(model_file, tiny_model, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["zeroshot_seg=scenes:32", "knn=scenes:32", "knn.k=3,5", "retrieval=scenes:32?field=web"]
    assert main(["eval", model_file, *words, "--samples", "10", "--json", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for word in ("zeroshot_seg", "miou_value", "top1_cls1", "scenes:32 test, 10 images", "out.json"):
        assert word in printed
    content = json.loads(out.read_text())
    assert content["model"] == {"source": model_file, **identity(tiny_model)}
    assert content["model"]["sha256"] == model_hash(tiny_model)
    assert content["versions"]["torch"] == torch.__version__ and "everypatch" in content["versions"]
    assert list(content["results"]) == ["zeroshot_seg", "knn", "retrieval"]
    assert content["results"]["knn"]["protocol"]["k"] == [3, 5]
    assert content["results"]["retrieval"]["protocol"]["field"] == "web"
    for result in content["results"].values():
        own = {"task", "dataset", "metrics", "protocol", "counts", "seconds", "details", "per_image"}
        assert set(result) == own | {"inputs", "model", "versions"}
        assert result["model"] == content["model"] and result["versions"] == content["versions"]


def test_another_size_than_the_model_was_trained_at_is_said(model_file, tiny_model, capsys):
    own, other = tiny_model.image_size, tiny_model.image_size + 16
    words = [f"knn=scenes:{own}", f"retrieval=scenes:{other}", "--samples", "8", "--device", "cpu"]
    assert main(["eval", model_file, *words]) == 0
    said = capsys.readouterr().out
    assert f"scenes:{other}: at {other} px; the model was trained at {own} px (--size sets it)" in said
    assert f"scenes:{own}: at" not in said
    assert main(["eval", model_file, *words, "--size", str(other)]) == 0
    assert "was trained at" not in capsys.readouterr().out


@pytest.fixture
def evaluated(monkeypatch):
    """The tasks that really run, by pass."""
    ran = []
    original = suites.run_tasks

    def run_tasks(model, tasks, dataset, **options):
        ran.append([task.name for task in tasks])
        return original(model, tasks, dataset, **options)

    monkeypatch.setattr(suites, "run_tasks", run_tasks)
    return ran


def test_finished_tasks_are_kept(model_file, tmp_path, capsys, evaluated):
    out = tmp_path / "out.json"
    common = ["--samples", "8", "--json", str(out), "--device", "cpu"]
    words = ["knn=scenes:32", "retrieval=scenes:32"]
    assert main(["eval", model_file, *words, *common]) == 0
    first = json.loads(out.read_text())["results"]
    assert main(["eval", model_file, *words, "linear_patch=scenes:32", *common]) == 0
    assert evaluated == [["knn", "retrieval"], ["linear_patch"]]
    assert "where they were finished: knn, retrieval (--again runs them again)" in capsys.readouterr().out
    kept = json.loads(out.read_text())["results"]
    assert {label: kept[label] for label in first} == first and list(kept) == [*first, "linear_patch"]
    assert main(["eval", model_file, *words, "knn.k=3", *common]) == 0  # another protocol
    assert main(["eval", model_file, *words, *common[2:], "--samples", "9"]) == 0  # other data
    assert main(["eval", model_file, *words, *common[2:], "--samples", "9", "--again"]) == 0
    assert evaluated[2:] == [["knn"], ["knn", "retrieval"], ["knn", "retrieval"]]
    assert list(json.loads(out.read_text())["results"]) == ["knn", "retrieval"]


def test_a_task_that_fails_leaves_the_finished_ones(model_file, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    original = suites.run_tasks

    def run_tasks(model, tasks, dataset, **options):
        if dataset.name.startswith("scenes:40"):
            raise KeyboardInterrupt
        return original(model, tasks, dataset, **options)

    monkeypatch.setattr(suites, "run_tasks", run_tasks)
    words = ["knn=scenes:32", "retrieval=scenes:40", "--samples", "8", "--json", str(out), "--device", "cpu"]
    assert main(["eval", model_file, *words]) == 130
    assert list(json.loads(out.read_text())["results"]) == ["knn"]
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize(("error", "status"), [(UserError("no end"), 2), (KeyboardInterrupt(), 130)])
def test_a_task_that_fails_at_its_end_leaves_the_others_of_its_dataset(
    model_file, tmp_path, monkeypatch, capsys, error, status
):
    def fail(self):
        raise error

    out = tmp_path / "out.json"
    monkeypatch.setattr(Retrieval, "outcome", fail)
    words = ["knn=scenes:32", "retrieval=scenes:32", "linear_patch=scenes:32"]
    assert main(["eval", model_file, *words, "--samples", "8", "--json", str(out), "--device", "cpu"]) == status
    kept = ["knn", "linear_patch"] if status == 2 else ["knn"]  # who interrupts will not wait for the rest
    assert list(json.loads(out.read_text())["results"]) == kept
    assert status == 130 or "no end" in capsys.readouterr().err


def test_what_a_model_lacks_for_a_later_dataset_is_told_before_any_work(model_file, tiny_model, capsys, evaluated):
    """A window that its patch does not divide, and a file that is no head of it."""
    words = ["knn=scenes:32", "zeroshot_seg=scenes:40", "zeroshot_seg.mode=slide", "zeroshot_seg.window=24"]
    assert main(["eval", model_file, *words, "--samples", "8", "--device", "cpu"]) == 2
    assert f"window = 24 is not a multiple of the model's patch, {tiny_model.image.patch}" in capsys.readouterr().err
    assert main(["eval", model_file, "knn=scenes:32", "depth=scenes:40", "depth.weights=none.npz"]) == 2
    assert "No file none.npz" in capsys.readouterr().err
    assert evaluated == []


@pytest.mark.parametrize(("error", "status"), [(UserError("no end"), 2), (KeyboardInterrupt(), 130)])
def test_finished_results_are_shown_where_a_later_dataset_fails(model_file, monkeypatch, capsys, error, status):
    def fail(self):
        raise error

    monkeypatch.setattr(Retrieval, "outcome", fail)
    words = ["knn=scenes:32", "retrieval=scenes:40", "--samples", "8", "--device", "cpu"]
    assert main(["eval", model_file, *words]) == status
    shown = capsys.readouterr().out
    assert "top1_cls1" in shown and "i2t_r1" not in shown


def test_results_of_another_model_are_not_mixed_in(model_file, tiny_model, tmp_path, capsys):
    out, other = tmp_path / "out.json", tmp_path / "other.pt"
    words = ["knn=scenes:32", "--samples", "8", "--json", str(out), "--device", "cpu"]
    assert main(["eval", model_file, *words]) == 0
    with torch.no_grad():
        tiny_model.log_temperature += 1
    save_model(tiny_model, other)
    assert main(["eval", str(other), *words]) == 2
    assert f"holds results of another model ({model_file}" in capsys.readouterr().err
    assert main(["eval", str(other), *words, "--again"]) == 0
    out.write_text("{}")
    assert main(["eval", str(other), *words]) == 2
    assert "holds no results of distill eval" in capsys.readouterr().err


def test_one_task_several_times(model_file, tmp_path, capsys, evaluated):
    """Labels name the results; a task that comes twice on one dataset gets a pass of its own."""
    out = tmp_path / "out.json"
    words = ["knn=scenes:32", "knn@few=scenes:32", "knn@few.k=1", "knn@other=scenes:40", "retrieval=scenes:32"]
    assert main(["eval", model_file, *words, "--samples", "8", "--json", str(out), "--device", "cpu"]) == 0
    assert evaluated == [["knn", "retrieval"], ["knn"], ["knn"]]
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"knn", "knn@few", "knn@other", "retrieval"}
    assert results["knn@few"]["protocol"]["k"] == [1] and results["knn@few"]["task"] == "knn"
    assert results["knn@other"]["dataset"] == "scenes:40 test"
    assert "knn@few" in capsys.readouterr().out


def test_a_recipe_and_words_that_win_over_it(tmp_path, monkeypatch):
    text = "samples: 5\nsize: 32\ntasks:\n  knn: {dataset: 'folder:{data}/pets', k: [1, 3]}\n  retrieval: scenes\n"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("# mine\n" + text)
    suite = read_suite(["mine.yaml", "knn.k=7", "retrieval=scenes:48", "knn@b=scenes"], data="/data/")
    assert (suite.samples, suite.size, suite.batch) == (5, 32, None)
    assert suite.requests["knn"].dataset == "folder:/data/pets" and suite.requests["knn"].options == {"k": 7}
    assert suite.requests["retrieval"].dataset == "scenes:48" and list(suite.requests)[2] == "knn@b"


RECIPE = (
    "tasks:\n  knn: scenes\n  knn@few: {dataset: scenes, k: [1]}\n  retrieval@a: scenes\n  retrieval@b: scenes:32\n"
)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["retrieval@b=none"], ["knn", "knn@few", "retrieval@a"]),
        (["retrieval=none"], ["knn", "knn@few"]),
        (["knn=none", "retrieval@a=none"], ["retrieval@b"]),
        (["retrieval=none", "retrieval@a=none"], ["knn", "knn@few"]),
        (["knn@few=none", "retrieval=none", "knn.k=3", "retrieval@c=scenes"], ["knn", "retrieval@c"]),
        (["retrieval=none", "retrieval@b=scenes:48", "knn=none"], ["retrieval@b"]),
    ],
)
def test_none_leaves_tasks_of_a_recipe_out(tmp_path, monkeypatch, words, left):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(RECIPE)
    suite = read_suite([*words, "a.yaml"])
    assert list(suite.requests) == left
    added = {word.partition("=")[0] for word in words if "=scenes" in word}
    assert {label for label, request in suite.requests.items() if not request.listed} == added


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.yaml", "depth=none"], "leaves out a recipe's task, but the recipe has only knn, knn@few, retrieval@a, re"),
        (["a.yaml", "knn@new=none"], "'knn@new=none' leaves out a recipe's task"),
        (["a.yaml", "kn=none"], "Did you mean 'knn'"),
        (["knn=none"], "'knn=none' leaves out a recipe's task, but there is no recipe. Leave the word out"),
        (["a.yaml", "knn=none", "knn.k=3"], "'knn=none' leaves knn out, but there are options for it"),
        (["a.yaml", "knn=none", "knn@few.k=3"], "'knn=none' leaves knn@few out, but there are options for it"),
        (["a.yaml", "knn=none", "retrieval=none"], "No task. Write task=dataset"),
    ],
)
def test_none_that_leaves_nothing_out_is_told(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(RECIPE)
    with pytest.raises(UserError) as error:
        read_suite(words)
    assert message in str(error.value)


def test_what_stops_a_recipe_says_how_to_go_without_it(model_file, tmp_path, monkeypatch, capsys):
    """A missing dataset and a missing label; words on the command line and wrong limits have no such way out."""
    monkeypatch.chdir(tmp_path)
    text = "tasks: {knn: 'scenes:32', retrieval@pets: 'folder:pets', knn@pets: 'folder:pets', depth: 'folder:photos'}"
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "photos/test/dog").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "photos/test/dog/a.png")

    def said(*words):
        common = ["--samples", "8", "--device", "cpu"]
        assert main(["eval", model_file, *words, *([] if "--samples" in words else common)]) == 2
        return capsys.readouterr().err.strip()

    assert said("a.yaml").endswith("To go without: retrieval@pets=none knn@pets=none.")
    message = said("a.yaml", "retrieval=none", "knn@pets=none")
    assert "Task 'depth' needs depth" in message and message.endswith("To go without: depth=none.")
    assert "To go without" not in said("depth=folder:photos") + said("a.yaml", "--samples", "0")
    words = ["a.yaml", "retrieval=none", "knn@pets=none", "depth=none", "--samples", "8", "--device", "cpu"]
    assert main(["eval", model_file, *words]) == 0


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("tasks: {knn: scenes}", ["b.yaml"], "No recipe file 'b.yaml'"),
        ("tasks: {knn: scenes}", ["a.yaml", "eval/scenes"], "'eval/scenes' is one recipe too many, after 'a.yaml'"),
        ("tasks: {knn: 'folder:{data}/x'}", ["a.yaml"], r"a.yaml reads folder:{data}/x. Say where its datasets are"),
        ("tasks: {kn: scenes}", ["a.yaml"], "Did you mean 'knn'"),
        ("tasks: {knn: {k: 3}}", ["a.yaml"], "a.yaml: 'knn' has no dataset"),
        ("tasks: {knn: scenes}\nsampels: 3", ["a.yaml"], "Unknown key of a.yaml 'sampels'. Did you mean 'samples'"),
        ("tasks: {knn: scenes}\nsize: big", ["a.yaml"], "a.yaml: size = 'big'; it must be a whole number"),
        ("base: x", ["a.yaml"], "a.yaml is no evaluation recipe"),
        ("tasks: {knn: [", ["a.yaml"], "a.yaml is not YAML"),
        ("tasks: {knn: scenes}", ["a.yaml", "knn@=scenes"], "'knn@' has no name after the @"),
    ],
)
def test_a_bad_recipe_is_told(tmp_path, monkeypatch, text, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_suite(words)
    assert message in str(error.value)


def test_compare(model_file, tiny_model, tmp_path, capsys):
    first, second, third = (tmp_path / f"{name}.json" for name in "abc")
    words = ["knn=scenes:32", "knn.k=3", "zeroshot_seg=scenes:32", "--samples", "12", "--device", "cpu", "--json"]
    assert main(["eval", model_file, *words, str(first)]) == 0
    assert main(["eval", model_file, *words, str(second)]) == 0
    assert main(["eval", model_file, "knn=scenes:40", "--samples", "12", "--device", "cpu", "--json", str(third)]) == 0
    capsys.readouterr()
    assert main(["eval", "--compare", str(first), str(second)]) == 0
    printed = capsys.readouterr().out
    for word in ("miou_value", "top1_cls1", "+0.0", "[+0.0,", "difference", "bootstrap over images", "zeroshot_seg "):
        assert word in printed
    assert printed.count("scenes:32 test") == 2
    assert main(["eval", "--compare", str(first), str(third)]) == 2
    assert "knn: the first has dataset 'scenes:32 test', the second 'scenes:40 test'" in capsys.readouterr().err
    content = json.loads(second.read_text())
    content["results"]["knn"]["protocol"]["k"] = [4]
    (tmp_path / "d.json").write_text(json.dumps(content))
    assert main(["eval", "--compare", str(first), str(tmp_path / "d.json")]) == 0
    printed = capsys.readouterr().out
    assert "miou_value" in printed and "top1_cls1" not in printed
    assert "left out: knn: the first has protocol k = [3], the second [4], so the two cannot be compared." in printed
    assert main(["eval", "--compare", str(first), str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main(["eval", "x", "--compare", str(first), str(second)]) == 2
    assert "--compare takes two results files and nothing else" in capsys.readouterr().err


def test_a_comparison_fits_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    line = Line("zeroshot_seg", "scenes:64 test", "miou_value", None, 0.123, 0.234, None, None, (-0.172, 0.032))
    alone = replace(line, label="retrieval", metric="chance_i2t_r1", difference_interval=None)
    show_comparison([line, replace(line, metric="miou_final"), alone], "one", "other")
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= 80
    for word in ("zeroshot_seg ", "retrieval ", "scenes:64 test ", "+11.1 % [-17.2, +3.2] ", "difference "):
        assert word in printed
    assert printed.count("scenes:64 test ") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No task. Write task=dataset"),
        (["zeroshot=scenes"], "Did you mean 'zeroshot_seg'"),
        (["knn"], "'knn' has no value. Write knn=DATASET"),
        (["knn.k=3"], "options but no dataset. Add knn=DATASET"),
        (["knn=scenes", "knn=scenes"], "given twice"),
        (["knn=scenes", "knn.kk=4"], "Unknown option of knn 'kk'"),
        (["knn=scenes", "knn.temperature=warm"], "knn.temperature = 'warm': it must be of type float"),
        (["knn=folder:/does/not/exist"], "No folder /does/not/exist"),
        (["knn=scenes", "--samples", "0"], "samples = 0"),
        (["knn=scenes", "--batch", "0"], "--batch 0"),
        (["knn=scenes", "--device", "tpu9"], "Unknown device 'tpu9'"),
        (["knn=scenes", "--json", "/does/not/exist/a.json"], "there is no folder /does/not/exist"),
        (["knn=scenes", "--jsno", "a.json"], "Did you mean '--json'"),
        (["knn=scenes", "--again"], "--again starts a results file anew: add --json FILE"),
        (["knn=ade20k:/does/not/exist"], "/does/not/exist is no ade20k dataset. Expected there: images/validation/"),
    ],
)
def test_bad_input_gets_one_line(model_file, capsys, words, message):
    assert main(["eval", model_file, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(name).index for name in ("cuda", "cuda:1")] == [None, 1]
    with pytest.raises(UserError, match=r"--device cuda:2: this machine has 2 CUDA GPU.*cuda:0 to cuda:1"):
        choose_device("cuda:2")


def test_depth_of_scenes_is_not_in_metres(model_file, capsys):
    words = ["depth=scenes:32", "depth.steps=1", "--samples", "4", "--device", "cpu"]
    assert main(["eval", model_file, *words]) == 0
    shown = capsys.readouterr().out
    assert " image sides " in shown and " m " not in shown


def test_no_model(capsys):
    assert main(["eval"]) == 2
    assert "distill eval needs a model" in capsys.readouterr().err


def test_missing_model(capsys, tmp_path):
    assert main(["eval", str(tmp_path / "none"), "knn=scenes"]) == 2
    assert "none" in capsys.readouterr().err


def test_words_keep_their_order_and_types():
    found = parse_words(["retrieval=folder:/a?field=alt&split=val", "knn=scenes", "knn.k=3", "knn.temperature=0.1"])
    assert found == {
        "retrieval": {"dataset": "folder:/a?field=alt&split=val"},
        "knn": {"dataset": "scenes", "k": 3, "temperature": 0.1},
    }
    assert [parse_value(v) for v in ("1", "1.5", "a", "1,2", "a,2.5")] == [1, 1.5, "a", [1, 2], ["a", 2.5]]
    with pytest.raises(UserError, match="has no value"):
        parse_words(["knn="])


def test_the_hash_follows_the_weights(tiny_model):
    before = model_hash(tiny_model)
    assert model_hash(tiny_model) == before and len(before) == 64
    with torch.no_grad():
        next(tiny_model.parameters()).view(-1)[0] += 1
    assert model_hash(tiny_model) != before


def test_the_papers_numbers_have_a_column_where_there_are_any(capsys):
    from distill.evals.published import Published
    from distill.evals.report import show_table
    from distill.evals.results import TaskResult

    metrics = {"miou_value": 0.2312, "miou_chance": 0.01}
    results = {
        "zeroshot_seg@ade": TaskResult("zeroshot_seg", "ade20k validation", metrics, {}, {"images": 7}, 1.0).as_dict(),
        "depth": TaskResult("depth", "nyuv2 test", {"rmse": 0.3456}, {}, {"images": 7}, 1.0).as_dict(),
    }
    show_table(results)
    assert "paper" not in (plain := capsys.readouterr().out)
    assert "23.1 %" in plain and "0.346 m" in plain
    seg = Published("zeroshot_seg", "ade20k", "validation", "miou_value", 0.247, "table 5")
    rows = {
        ("zeroshot_seg@ade", "miou_value"): seg,
        ("depth", "rmse"): Published("depth", "nyuv2", "test", "rmse", 0.339, "table 15"),
    }
    show_table(results, rows)
    printed = capsys.readouterr().out
    assert "24.7 %" in printed and "0.339 m" in printed and "paper: table 15; table 5" in printed
