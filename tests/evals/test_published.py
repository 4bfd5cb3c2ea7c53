"""Numbers of the papers, beside ours when the model is a released one and the benchmark the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from distill.evals.published import beside, published
from distill.evals.results import TaskResult
from distill.models import official_variants
from distill.models.arch import Arch
from distill.models.sources.base import SourceFacts

L14 = Arch("L", 14, 1024, 24, 16, 4096, "gelu", 12, 4096)
FACTS = SourceFacts(
    "tips:x", "tips", "x", None, None, L14, (0, 0, 0), (1, 1, 1), 2, 0, (32, 32), 448, 0, 0, "",
    variant=official_variants.variant(L14, 32),
)  # fmt: skip


def result(task: str, dataset: str, **metrics: float) -> TaskResult:
    return TaskResult(task, dataset, metrics, {}, {}, 0.0)


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
        "zeroshot_seg": result("zeroshot_seg", "ade20k val", miou_value=0.2312, miou_value_slide=0.24, miou_final=0.1),
        "retrieval": result("retrieval", "folder:/data/flickr30k", i2t_r1_cls2=0.9),
        "depth": result("depth", "nyuv2 test", rmse=0.3456),
    }
    lines = beside(FACTS, results)
    assert lines == [
        "zeroshot_seg on ade20k: miou_value 23.1 %; published 24.7 % (TIPSv2, arXiv 2604.12012, table 15)",
        "zeroshot_seg on ade20k: miou_value_slide 24.0 %; published 25.1 % (TIPSv2, arXiv 2604.12012, table 8)",
        "depth on nyuv2: rmse 0.346; published 0.339 (TIPSv2, arXiv 2604.12012, table 15)",
    ]
    assert beside(replace(FACTS, variant=None), results) == []


def test_the_table_is_whole():
    from importlib import resources

    table = json.loads(resources.files("distill.evals").joinpath("published.json").read_text())
    for rows in table.values():
        keys = [(r["task"], r["benchmark"], r["metric"]) for r in rows]
        assert len(keys) == len(set(keys))
        for row in rows:
            assert 0 < row["value"] < (100 if row["task"] == "normals" else 1)
