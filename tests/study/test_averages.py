"""Comparisons with an averaged trunk, the network that teaches."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distill.errors import UserError
from distill.study.averages import shown
from distill.study.claim_lines import all_claim_lines, claim_lines
from distill.study.columns import COLUMNS
from distill.study.fragments import score_table
from distill.study.markdown import study_part
from distill.study.results import by_seed, difference, findings
from distill.study.run import plan_study
from distill.study.table import summary_table

Edit = Callable[[str, str], Path]
AVERAGED = "ibot: {title: pretrained, set: {teacher.mode: ema}}"
PAIRS = """\
  - {pair: [ibot, ibotpp], factors: [tokens, teacher]}
  - {pair: [ibot.average, unmasked], factors: [tokens, mask, teacher]}
"""
FINAL = "zeroshot_seg/miou_final"
CLAIM, TURNED = "compare: [ibot.average, unmasked]", "compare: [unmasked, ibot.average]"


@pytest.fixture
def averaged(edit: Edit) -> Path:
    edit("ibot: {title: pretrained}", AVERAGED)
    edit("  - [ibot, ibotpp]\n  - {pair: [ibot, unmasked], factors: [tokens, mask, teacher]}\n", PAIRS)
    return edit("compare: [ibot, ibotpp]", CLAIM)


def test_a_student_is_compared_with_the_network_that_taught_it(averaged: Path, play: Any) -> None:
    results = play(seeds=3).results
    own = by_seed(results, "ibot", FINAL)
    average = {row["seed"]: row["metrics"][f"average/{FINAL}"] for row in results["rows"] if row["variant"] == "ibot"}
    student = by_seed(results, "unmasked", FINAL)
    finding = findings(results)[0]
    expected = sum(student[seed] - average[seed] for seed in range(3)) / 3
    assert finding.difference.mean == pytest.approx(expected)
    assert finding.difference.mean == pytest.approx(sum(student[s] - own[s] for s in range(3)) / 3 - 0.01)
    column = next(c for c in COLUMNS if c.key == FINAL)
    assert difference(results, "ibot.average", "unmasked", column).mean == pytest.approx(expected)


def test_a_claim_says_when_another_run_of_the_recipe_taught(averaged: Path, play: Any) -> None:
    results = play(seeds=3).results
    assert not findings(results)[0].retaught  # not known of cells made before it was recorded
    for row in results["rows"]:
        row |= {
            "weights": f"{row['variant']}{row['seed']}",
            "taught_by": f"ibot{row['seed']}" if row["teacher"] else None,
        }
    assert not findings(results)[0].retaught
    next(row for row in results["rows"] if row["teacher"])["taught_by"] = "another"
    assert findings(results)[0].retaught
    assert claim_lines(results)[0].seeds == "3, another teacher of that recipe"
    for row in results["rows"]:
        row |= {"weights": None, "taught_by": "ibot0" if row["teacher"] else None}
    assert findings(results)[0].retaught  # the scored teacher may be another run


def test_a_claim_whose_second_side_is_the_average_is_judged_alike(averaged: Path, play: Any, edit: Edit) -> None:
    straight = play(seeds=3).results
    edit("{pair: [ibot.average, unmasked], ", "{pair: [unmasked, ibot.average], ")
    edit(CLAIM, TURNED)
    results = play(seeds=3, name="turned").results
    for row in results["rows"]:
        row |= {"weights": f"{row['variant']}{row['seed']}", "taught_by": "another" if row["teacher"] else None}
        row["environment"]["precision"] = "bf16" if row["variant"] == "ibot" else "fp32"
    one, two = findings(straight)[0], findings(results)[0]
    assert (one.difference.n, two.difference.n) == (3, 3)
    assert two.difference.mean == pytest.approx(-one.difference.mean)
    line = claim_lines(results)[0]
    assert line.what == "ibot.average − unmasked"
    assert line.seeds == "3, bf16 against fp32, another teacher of that recipe"
    own = {**results, "study": "own", "claims": [{**results["claims"][0], "second": "ibot"}]}
    assert [line.also for line in all_claim_lines({"trio": results, "own": own})] == [(), ()]  # not the same network


def test_tables_show_both(averaged: Path, play: Any) -> None:
    results = play().results
    assert shown(results) == ["ibot", "ibot.average", "ibotpp", "unmasked"]
    assert "averaged trunk of ibot, the network that teaches" in score_table(results)
    lines = study_part(results).splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("| `")] == [f"| `{n}`" for n in shown(results)]
    terminal = Console(file=io.StringIO(), width=160)
    terminal.print(summary_table(results, 160))
    assert "ibot.average" in terminal.file.getvalue()


def test_only_a_run_that_averages_its_trunk_has_an_average(edit: Edit, tmp_path: Path) -> None:
    recipe = edit("{pair: [ibot, unmasked], ", "{pair: [ibot.average, unmasked], ")
    with pytest.raises(UserError, match=r"ibot.average is no averaged trunk, as only teacher.mode ema .* compare ibot"):
        plan_study(recipe, runs=tmp_path)
    with pytest.raises(UserError, match=r"Unknown variant in compare of .*'nobody.average'"):
        plan_study(edit("[ibot.average, unmasked]", "[nobody.average, unmasked]"), runs=tmp_path)
