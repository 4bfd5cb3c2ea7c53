from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from distill.cli import main
from distill.errors import UserError
from distill.study.columns import COLUMNS, SCORES, show
from distill.study.effects import effects_svg
from distill.study.markdown import study_part
from distill.study.plots import MASKED, VISIBLE, patch_loss_svg
from distill.study.report import build_report, notes
from distill.study.results import Tree, findings, load_results, mean_of
from distill.study.run import StudyResult, rebuild
from distill.study.table import best, summary_table

Play = Callable[..., StudyResult]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Checker(HTMLParser):
    """Collects the text and every address, and insists that each tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids |= {value or "" for name, value in attrs if name == "id" and tag == "image"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parse(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    return checker


@dataclass
class Done:
    """A finished study in a folder of the test's own."""

    folder: Path
    results: Tree


@pytest.fixture
def done(painted: Path, tmp_path: Path) -> Done:
    folder = tmp_path / "trio"
    shutil.copytree(painted, folder)
    return Done(folder, load_results(folder))


def test_report_is_one_well_formed_file_with_every_variant(done: Done) -> None:
    page = parse((done.folder / "report.html").read_text())
    text = " ".join(page.words)
    for variant, about in done.results["variants"].items():
        assert text.count(variant) >= 3
        assert about["title"] in text
    for heading in ("Scores", "Claims", "Patch loss by kind of token", "What the patches know", "What was run"):
        assert heading in text
    assert "final tokens" in text
    assert "value path" in text
    assert "script" not in page.tags
    assert page.sources
    assert all(source.startswith(("data:image/", "#p")) for source in page.sources)
    # image, truth and three variants for six images under three kinds of panel; three loss plots, one of effects
    assert page.tags.count("use") == 6 * 5 * 3
    assert page.tags.count("img") == 3 + 1
    assert {s[1:] for s in page.sources if s.startswith("#")} == page.ids
    assert page.tags.count("image") == len(page.ids) < 6 * 5 * 3


def test_report_shows_the_numbers_of_results_json(done: Done) -> None:
    text = (done.folder / "report.html").read_text()
    results = json.loads((done.folder / "results.json").read_text())
    scores = [r["metrics"]["zeroshot_seg/miou_final"] for r in results["rows"] if r["variant"] == "ibotpp"]
    assert len(scores) == 2
    assert f"{50 * sum(scores):.1f} ±" in text


def test_claims_json_holds_the_verdicts(done: Done) -> None:
    claims = json.loads((done.folder / "claims.json").read_text())
    assert [c["says"] for c in claims] == ["all tokens beat masked ones"]
    assert claims[0]["n"] == 2
    assert claims[0]["mean"] == pytest.approx(0.12, abs=0.02)


def test_a_metric_that_no_run_has_is_named(done: Done) -> None:
    done.results["claims"][0]["metric"] = "zeroshot_seg/miou"
    finding = findings(done.results)[0]
    assert (finding.verdict, finding.reason) == ("not measured", "no run has the metric zeroshot_seg/miou")
    done.results["rows"] = []
    assert findings(done.results)[0].reason == "no seed has both variants"


def test_report_is_rebuilt_from_the_results_alone(done: Done) -> None:
    report = done.folder / "report.html"
    before = report.read_text()
    report.unlink()
    (done.folder / "claims.json").unlink()
    assert rebuild(done.folder) == report
    assert report.read_text() == before
    assert (done.folder / "claims.json").exists()


def test_one_seed_and_missing_cells_are_said(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAIL", "ibotpp")
    result = play()
    said = " ".join(notes(result.results))
    assert "One seed" in said
    assert "Not finished: ibotpp-s0" in said
    page = " ".join(parse(build_report(result.results, result.folder)).words)
    assert "undecided" in page
    assert "One seed" in page


def test_mixed_code_and_hardware_are_said(done: Done) -> None:
    assert notes(done.results) == []
    done.results["rows"][0]["code"] = "other"
    done.results["rows"][1]["environment"] = {"device": "Another CPU"}
    said = " ".join(notes(done.results))
    assert "different versions of the code" in said
    assert "different hardware" in said


def test_mixed_precisions_are_said(done: Done) -> None:
    done.results["rows"][0]["environment"]["precision"] = "bf16"
    assert "fp32" in " ".join(notes(done.results))
    assert "Test CPU in bf16" in build_report(done.results, done.folder)


def test_a_row_says_its_seeds_and_hardware_as_the_markdown_does(done: Done) -> None:
    done.results["rows"] = [r for r in done.results["rows"] if (r["variant"], r["seed"]) != ("ibotpp", 1)]
    for row in done.results["rows"]:
        row["environment"] = {"device": "A <CPU>", "precision": "bf16" if row["seed"] else "fp32"}
    page, lines = build_report(done.results, done.folder), study_part(done.results).splitlines()
    cell = '<td class="seeds">{}</td><td class="made">{}</td></tr>'
    assert page.count(cell.format(1, "A &lt;CPU&gt; in fp32")) == 2  # with its scores and with its cost
    assert page.count(cell.format(2, "A &lt;CPU&gt; in bf16; A &lt;CPU&gt; in fp32")) == 4
    assert "| 1 | 2.2 | A <CPU> in fp32 |" in next(line for line in lines if line.startswith("| `ibotpp`"))


def test_text_from_recipes_is_escaped(done: Done) -> None:
    done.results["title"] = "<script>alert(1)</script> & more"
    done.results["variants"]["ibot"]["title"] = "a < b"
    page = parse(build_report(done.results, done.folder))
    assert "script" not in page.tags
    assert "a < b" in " ".join(page.words)


def test_results_rows_have_switches_metrics_and_cost(done: Done) -> None:
    rows = {(r["variant"], r["seed"]): r for r in done.results["rows"]}
    assert set(rows) == {(v, s) for v in ("ibot", "ibotpp", "unmasked") for s in (0, 1)}
    student = rows["unmasked", 1]
    assert student["switches"]["mask.ratio"] == 0
    assert student["switches"]["objective.patch.tokens"] == "all"
    assert student["teacher"] == "ibot-s1"
    assert student["cost"]["teacher_forwards"] > 0
    assert {"metrics", "environment", "code", "address", "finished"} <= student.keys()


def test_reading_results_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the study first"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="format 99"):
        load_results(tmp_path)


def test_table_marks_the_best_and_fits_narrow_terminals(done: Done) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(summary_table(done.results, 140))
    wide = console.export_text(styles=True)
    column = next(c for c in COLUMNS if c.key == "linear_patch/accuracy")
    means = {v: mean_of(done.results, v, column) for v in done.results["variants"]}
    texts = {show(column, mean.mean, mean.half) for mean in means.values() if mean}
    top = best(done.results, column)
    winner = next(mean for mean in means.values() if mean and mean.mean == top)
    assert top == max(mean.mean for mean in means.values() if mean)
    bold = set(re.findall(r"\x1b\[1m *(\d+\.\d ± \d+\.\d)", wide))
    assert bold & texts == {show(column, winner.mean, winner.half)}
    assert "params" in wide
    console.print(summary_table(done.results, 80))
    assert "params" not in console.export_text()


def test_the_smaller_error_is_the_best(done: Done) -> None:
    for row in done.results["rows"]:
        row["metrics"]["depth/rmse"] = 0.2 if row["variant"] == "ibotpp" else 0.4
    depth = next(c for c in COLUMNS if c.key == "depth/rmse")
    assert best(done.results, depth) == 0.2
    page = build_report(done.results, done.folder)
    assert '<b>0.200 ± 0.000</b><i class="bar" style="width:100%">' in page
    assert '0.400 ± 0.000<i class="bar" style="width:50%">' in page
    assert '<td class="up sure">−0.200 ± 0.000</td>' in page


def test_the_papers_numbers_stand_beside_ours(done: Done) -> None:
    assert "In the paper" not in build_report(done.results, done.folder)
    done.results["paper"] = {"source": "Table <3>", "columns": ["PC59", "ADE150"], "values": {"ibotpp": [28.6, None]}}
    text = build_report(done.results, done.folder)
    parse(text)
    assert "<td>28.6</td><td>–</td>" in text
    assert "Table &lt;3&gt;" in text
    assert "not the values" in text


def test_effects_are_blue_where_better_and_orange_where_worse_whichever_way_is_better(done: Done) -> None:
    done.results["compare"] = done.results["compare"][:1]
    for row in done.results["rows"]:
        row["metrics"] = {"depth/rmse": 0.2 if row["variant"] == "ibotpp" else 0.4}
    assert VISIBLE in effects_svg(done.results)
    assert MASKED not in effects_svg(done.results)
    for row in done.results["rows"]:
        row["metrics"] = {"knn/top1_cls1": 0.2 if row["variant"] == "ibotpp" else 0.4}
    assert MASKED in effects_svg(done.results)
    done.results["compare"] = []
    assert effects_svg(done.results) == ""


def test_charts_say_their_units_and_leave_out_what_has_no_data(done: Done) -> None:
    for row in done.results["rows"]:
        row["metrics"] = {"depth/rmse": 0.3, "knn/top1_cls1": 0.4}
    done.results["rows"] = [row for row in done.results["rows"] if row["variant"] != "unmasked"]
    text = effects_svg(done.results)
    assert ">k-NN, points<" in text
    assert ">depth, RMSE<" in text
    assert "ibot → ibotpp" in text
    assert "ibot → unmasked" not in text
    done.results["rows"] = [row for row in done.results["rows"] if row["variant"] != "ibotpp"]
    assert effects_svg(done.results) == ""
    curve = {"patch_visible": {"step": [1.0, 2.0], "value": [3.0, 2.0]}}
    assert ">patch loss<" in patch_loss_svg(curve, (0.0, 4.0))


def test_charts_of_many_metrics_take_several_rows(done: Done) -> None:
    sizes = {}
    for count in (5, 6, len(SCORES)):
        for row in done.results["rows"]:
            row["metrics"] = {column.key: 0.3 for column in SCORES[:count]}
        effects = effects_svg(done.results)
        box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', effects)
        assert box
        sizes[count] = (float(box[1]), float(box[2]))
        assert all(f">{column.short}, " in effects for column in SCORES[:count])
    assert sizes[5][0] == sizes[6][0] == sizes[len(SCORES)][0]  # as wide as five
    assert sizes[5][1] < sizes[6][1] == sizes[len(SCORES)][1]


def test_one_hardware_for_all_rows_stands_among_the_facts_alone(done: Done) -> None:
    page = build_report(done.results, done.folder)
    assert 'class="made"' not in page
    assert "<dt>hardware</dt><dd>Test CPU" in page
    without = {**done.results, "rows": [row for row in done.results["rows"] if row["variant"] != "ibotpp"]}
    assert 'class="made"' not in build_report(without, done.folder)
    done.results["rows"][0]["environment"] = {"device": "Another CPU"}
    page = build_report(done.results, done.folder)
    assert page.count('<th class="made">hardware</th>') == 2  # of the scores and of the costs
    assert '<td class="made">Another CPU' in page


def test_what_is_neither_better_nor_worse_has_no_best_and_no_colour(done: Done) -> None:
    for row in done.results["rows"]:
        row["metrics"] = {"locality/global_share_final": 0.2 if row["variant"] == "ibotpp" else 0.4}
    share = next(c for c in COLUMNS if c.key == "locality/global_share_final")
    assert best(done.results, share) is None
    text = build_report(done.results, done.folder)
    assert "<b>20.0" not in text
    assert '<td class=" sure">−20.0 ± 0.0</td>' in text
    assert VISIBLE not in effects_svg(done.results)
    assert MASKED not in effects_svg(done.results)


def test_a_folder_whose_place_was_left_out_is_explained(done: Done) -> None:
    assert "(DIR" not in build_report(done.results, done.folder)
    done.results["folder"] = "DIR/trio"  # as kept results have it
    assert "results (DIR: the folder that holds it):</p><pre>distill study DIR/trio" in build_report(
        done.results, done.folder
    )


def test_the_words_of_its_tables_are_explained(done: Done) -> None:
    text = (done.folder / "report.html").read_text()
    for word in ("iBOT++", "EMA", "mIoU", "probe", "k-NN", "recall@1, R@1", "RMSE", "class share"):
        assert f"<dt>{word}</dt>" in text


def test_other_lengths_of_training_are_said(done: Done) -> None:
    assert "40 steps of 16 images each</dd>" in build_report(done.results, done.folder)
    done.results["factors"]["length"] = ["train.steps"]
    assert "40 steps of 16 images each, unless a variant says otherwise</dd>" in build_report(done.results, done.folder)


def test_on_paper_nothing_is_wider_than_the_page(done: Done) -> None:
    """What only scrolls on a screen must wrap or shrink in print."""
    rules = (done.folder / "report.html").read_text().split("@media print {")[1]
    assert ".scroll { overflow: visible; }" in rules
    wraps = ".overview td, .overview .verdict { white-space: normal;", "td { min-width: 0; white-space: normal; }"
    for rule in (".scroll img { max-width: 100%;", *wraps):
        assert rule in rules


def test_failed_cells_are_named(done: Done) -> None:
    done.results["failed"] = {"none-s1": "step 3\nThe patch targets collapsed."}
    assert "none-s1 failed, so no claim counts it: The patch targets collapsed." in notes(done.results)


def test_command_line_rebuilds_and_refuses(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(done.folder), "--report"]) == 0
    assert "report.html" in capsys.readouterr().out
    assert main(["study", str(done.folder), "train.steps=3", "--report"]) == 2
    assert "takes no settings" in capsys.readouterr().err
    for words in (["--only", "a"], ["--seeds", "3"], ["--lr-check"]):
        assert main(["study", str(done.folder), *words, "--report"]) == 2
        assert f"takes no {words[0]}; leave it out" in capsys.readouterr().err
    assert main(["study", "no/folder", "--report"]) == 2
    assert "There is no folder of results no/folder, and as a recipe: " in capsys.readouterr().err
    for recipe, use in (("pretrain/scenes_tiny", "distill run pretrain/scenes_tiny"), ("eval/scenes", "distill eval")):
        assert main(["study", recipe]) == 2
        assert f"not a study; use: {use}" in capsys.readouterr().err
    assert main(["study", "study/no_such_study"]) == 2
    assert "no_such_study" in capsys.readouterr().err
    assert main(["study", "study/demo", "--only", " , "]) == 2
    assert "--only names no variant" in capsys.readouterr().err
