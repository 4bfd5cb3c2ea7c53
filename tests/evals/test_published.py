"""Numbers of the papers, beside ours when the model is a released one and the benchmark the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_type_hints

import pytest

from distill.evals.published import beside, published, variant_for
from distill.evals.report import show_table
from distill.evals.requests import read_suite
from distill.evals.results import TaskResult
from distill.models import official_variants
from distill.models.arch import Arch
from distill.models.sources.base import SourceFacts

L14 = Arch("L", 14, 1024, 24, 16, 4096, "gelu", 12, 4096)
FACTS = SourceFacts(
    "tips:x", "tips", "x", None, None, L14, (0, 0, 0), (1, 1, 1), 2, 0, (32, 32), 448, 0, 0, "",
    variant=official_variants.variant(L14, 32),
)  # fmt: skip
LINEAR = {"head": "linear", "cls": "with"}  # on patches with CLS-1 beside them


def result(task: str, dataset: str, **metrics: float) -> dict:
    return TaskResult(task, dataset, metrics, {}, {}, 0.0).as_dict()


def test_a_released_model_has_the_papers_numbers():
    rows = published(FACTS)
    value = {(r.benchmark, r.metric): r.value for r in rows["zeroshot_seg"]}
    assert value["ade20k", "miou_value"] == pytest.approx(0.247)  # table 5 and table 15
    assert value["ade20k", "miou_value_slide"] == pytest.approx(0.251)  # table 8
    assert published(replace(FACTS, variant="TIPSv2 g/14"))["knn"][0].value == pytest.approx(0.837)
    assert published(replace(FACTS, variant=None)) == {}


def test_every_released_model_has_some():
    names = {f"TIPS {size}/14" for size in ("S", "B", "L", "So400m", "g")}
    names |= {f"TIPSv2 {size}/14" for size in ("B", "L", "So400m", "g")}
    for name in names:
        assert published(replace(FACTS, variant=name)), name


def test_ours_stand_beside_theirs_on_the_same_benchmark_only():
    results = {
        "zeroshot_seg@ade": result(
            "zeroshot_seg", "ade20k validation", miou_value=0.2312, miou_value_slide=0.24, miou_final=0.1
        ),
        "retrieval": result("retrieval", "folder:/data/flickr30k", i2t_r1_cls2=0.9),
        "depth": result("depth", "nyuv2 test", rmse=0.3456, rmse_constant=1.2),
        "knn": result(
            "knn", "imagenet val", top1_cls1=0.8, top1_patches=0.7, top1_patches_k10=0.7, top1_constant=0.001
        ),
        "zeroshot_seg@train": result("zeroshot_seg", "ade20k training", miou_value=0.25),
        "knn@sketch": result("knn", "imagenet all", top1_cls1=0.6),  # also -A, -R and V2
    }
    for label, protocol in (("zeroshot_seg@ade", {"prompts": "tcl"}), ("depth", LINEAR)):
        results[label]["protocol"] = protocol
    found = {key: (row.value, row.source[-8:]) for key, row in beside(FACTS, results).items()}
    assert found == {
        ("zeroshot_seg@ade", "miou_value"): (0.247, "table 15"),
        ("zeroshot_seg@ade", "miou_value_slide"): (0.251, " table 8"),
        ("depth", "rmse"): (0.339, "table 15"),
        ("knn", "top1_cls1"): (0.825, "table 15"),
    }
    assert beside(replace(FACTS, variant=None), results) == {}


@pytest.mark.parametrize(
    ("task", "dataset", "metric", "theirs", "other"),
    [
        ("depth", "navi test", "rmse", {"head": "dpt"}, {"head": "linear"}),
        ("depth", "nyuv2 test", "rmse", LINEAR, {"head": "dpt", "cls": "with"}),
        ("depth", "nyuv2 test", "rmse", LINEAR, {"head": "linear", "cls": "without"}),
        ("linear_seg", "voc21 val", "miou", {"cls": "with"}, {"cls": "without"}),
        ("zeroshot_seg", "ade20k validation", "miou_value", {"prompts": "tcl"}, {"prompts": "plain"}),
    ],
)
def test_ours_stand_beside_theirs_where_they_were_measured_alike(task, dataset, metric, theirs, other):
    facts = replace(FACTS, variant="TIPSv2 g/14")
    for protocol, known in ((theirs, {(task, metric)}), (other, set())):
        ours = {**result(task, dataset, **{metric: 0.5}), "protocol": {**protocol, "size": 448}}
        assert set(beside(facts, {task: ours})) == known


@pytest.mark.parametrize(
    ("parameters", "variant"),
    [(1e5, "TIPS S/14"), (22e6, "TIPS S/14"), (86e6, "TIPSv2 B/14"), (310e6, "TIPSv2 L/14"), (9e9, "TIPSv2 g/14")],
)
def test_beside_a_model_trained_here_stands_the_nearest_in_size(parameters, variant, capsys):
    ours = replace(FACTS, kind="run", variant=None, image_parameters=int(parameters))
    assert variant_for(ours) == variant and published(ours) == published(replace(FACTS, variant=variant))
    assert variant_for(replace(ours, kind="timm")) is None and variant_for(FACTS) == "TIPSv2 L/14"
    results = {"knn": result("knn", "imagenet val", top1_cls1=0.8)}
    results["knn"]["counts"] = {"images": 50_000}
    show_table(results, beside(ours, results), variant)
    assert f"paper's numbers for the nearest variant, {variant}:" in " ".join(capsys.readouterr().out.split())


def test_depth_is_measured_where_the_paper_measures_it():
    suite = read_suite(["eval/paper_image"], data="/data")
    assert suite.requests["depth@nyuv2"].options == {"crop": "eigen"}  # to 10 m
    assert suite.requests["depth@navi"].options == {"head": "dpt", "max": 1.0}
    assert "normals@nyuv2" not in suite.requests  # NYUv2 comes without


def test_the_table_is_whole():
    from importlib import resources

    table = json.loads(resources.files("distill.evals").joinpath("published.json").read_text())
    for rows in table.values():
        keys = [(r["task"], r["benchmark"], r["metric"]) for r in rows]
        assert len(keys) == len(set(keys))
        for row in rows:
            assert 0 < row["value"] < (100 if row["task"] == "normals" else 1)


def test_every_number_is_of_a_benchmark_and_a_metric_that_there_are():
    from importlib import resources

    from distill.evals.datasets.catalogue import BENCHMARKS
    from distill.evals.published import _measures
    from distill.evals.registry import find_task

    for rows in json.loads(resources.files("distill.evals").joinpath("published.json").read_text()).values():
        for row in rows:
            assert row["split"] == BENCHMARKS[row["benchmark"]].split
            assert set(row.get("protocol", {})) <= set(get_type_hints(find_task(row["task"]).Options))
            assert any(_measures(name, row["metric"]) for name in find_task(row["task"]).headline), row
