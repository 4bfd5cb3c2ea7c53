import json

import pytest
import torch

from distill.cli import main
from distill.errors import UserError
from distill.evals.cli import parse_value, parse_words
from distill.evals.report import model_hash
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
    assert content["model"] == {"source": model_file, "sha256": model_hash(tiny_model)}
    assert content["versions"]["torch"] == torch.__version__ and "everypatch" in content["versions"]
    assert list(content["results"]) == ["zeroshot_seg", "knn", "retrieval"]
    assert content["results"]["knn"]["protocol"]["k"] == [3, 5]
    assert content["results"]["retrieval"]["protocol"]["field"] == "web"
    for result in content["results"].values():
        assert set(result) == {"task", "dataset", "metrics", "protocol", "counts", "seconds", "details"}


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
    ],
)
def test_bad_input_gets_one_line(model_file, capsys, words, message):
    assert main(["eval", model_file, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""


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
