"""The verb `bench`: every benchmark runs, and what it found is kept and shown. No test here looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill import cli
from distill.bench import contrast, cuda
from distill.bench.curves import straightness
from distill.bench.measure import operations, peak_memory
from distill.bench.registry import BENCHMARKS, module_of
from distill.bench.report import number
from distill.bench.rows import Row, less, more, not_measured


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_and_is_reported(name, tmp_path: Path, capsys):
    target, page = tmp_path / "bench.json", tmp_path / "bench.md"
    assert cli.main(["bench", name, "--quick", "--json", str(target), "--report", str(page)]) == 0
    result = json.loads(target.read_text())[name]
    assert result["quick"] is True
    assert {"torch", "timm"} <= result["environment"]["packages"].keys()
    for row in (Row(**r) for r in result["rows"]):
        assert row.ours is None or row.ours >= 0
        assert row.ours is not None or row.note.startswith("not measured: ")
        assert row.what in page.read_text()
    drawn = hasattr(module_of(name), "draw")
    assert [path.name for path in tmp_path.glob("*.png")] == [f"bench_{name}.png"] * drawn
    assert f"{name}: " in capsys.readouterr().out


def test_results_of_other_benchmarks_are_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("distill.bench.run.measure_of", lambda name: lambda quick: [less(name, 1.0, 2.0, "s")])
    target = tmp_path / "bench.json"
    target.write_text(json.dumps({"other": {"rows": []}}))
    assert cli.main(["bench", "prototype_loss", "--json", str(target)]) == 0
    content = json.loads(target.read_text())
    assert list(content) == ["other", "prototype_loss"]
    assert content["prototype_loss"]["rows"][0]["ratio"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prototype_los"], "Unknown benchmark 'prototype_los'. Did you mean 'prototype_loss'?"),
        (["--report", "a.md"], "--report a.md is made from a results file: add --json FILE."),
        (["--json", "no/such/a.json"], "There is no folder"),
        (["--json", "odd.json"], "odd.json holds something else than benchmark results"),
    ],
)
def test_refused(tmp_path: Path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("odd.json").write_text("[1]")
    assert cli.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_ratio_says_how_many_times_better_ours_is():
    assert less("time", 2.0, 6.0, "s").ratio == 3
    assert more("rate", 6.0, 2.0, "steps/s").ratio == 3
    assert not_measured("rate", "s", "no GPU at hand") == Row(
        "rate", None, None, None, "s", "not measured: no GPU at hand"
    )
    assert [number(x) for x in (None, 0.01234, 9.876, 123.4, 12345.6)] == ["–", "0.0123", "9.88", "123", "12,346"]


def _allocate(mib: int):

    return lambda: torch.ones(mib << 20, dtype=torch.uint8)


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_peak_memory_counts_the_call_alone(fresh):
    assert 60 < peak_memory(_allocate, 64, fresh=fresh) < 100


@pytest.mark.parametrize("step", cuda.STEPS)
def test_the_steps_for_a_gpu_run_in_small_on_a_cpu(step):
    rate, share = cuda.model_rows(step, "cpu", quick=True)
    assert (rate.what, rate.unit, share.unit) == (step, "steps/s", "share of the matrix rate")
    assert rate.ours > 0
    assert share.ours > 0


def test_operations_are_counted_as_by_hand():
    linear, x = torch.nn.Linear(7, 5), torch.ones(3, 7)
    assert operations(lambda: linear(x).sum().backward()) == 2 * (2 * 3 * 7 * 5)  # the product, the weight's gradient


def test_how_straight_a_curve_is():
    assert straightness([1, 2, 4], [3, 5, 9]) == pytest.approx(1)
    assert straightness([1, 2, 3], [5, 5, 5]) == 1
    assert straightness([-1, 0, 1], [1, 0, 1]) == pytest.approx(0)


def test_the_reference_of_the_contrast_makes_no_product_twice():
    pairs, width = 8, 4
    product = 2 * pairs * pairs * width
    assert operations(contrast.prepare("plain", pairs, width)) == 3 * product  # logits, and a gradient for each side
    assert operations(contrast.prepare("parts", pairs, width)) == 4 * product
    ours, reference = (contrast.prepare(kind, pairs, width)() for kind in ("parts", "plain"))
    for own, plain in zip(ours, reference):
        torch.testing.assert_close(own, plain, atol=1e-5, rtol=1e-4)
