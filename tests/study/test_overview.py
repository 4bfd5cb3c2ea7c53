"""Several studies in one report, and as Markdown."""

from __future__ import annotations

import copy
import io
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from distill.cli import main
from distill.study import markdown, runner
from distill.study.claim_lines import all_claim_lines, claim_lines
from distill.study.forest import WIDTH, interval_svg, widest
from distill.study.fragments import claim_list, difference_table
from distill.study.overview import build_overview
from distill.study.recipe import read_study
from distill.study.results import findings, load_studies
from distill.study.run import rebuild, study

from .conftest import fake_painter, write_recipe

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "results" / "study"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept results of two studies that share their cells; the second one has claims with numbers."""
    folder = tmp_path_factory.mktemp("kept")
    path = write_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "POLL", 0.01)
        patch.setenv("FAKE_STEPS", "1")
        patch.setenv("FAKE_PICTURES", "1")
        for name in ("trio", "duo"):
            text = path.read_text()
            if name == "duo":
                text = text.replace("study: trio", "study: duo").replace("says: all tokens", "says: '2: all | tokens'")
                text = text.replace("'2: all | tokens' beat masked ones", "'2: all | tokens stay level'")
                text = text.replace("expect: +", "expect: 0, margin: 0.05")
            path.write_text(text)
            options = {"runs": folder / "runs", "keep": folder / "kept", "parallel": 2, "seeds": 3}
            quiet = Console(file=io.StringIO())
            study(path, {"train.accelerator": "cpu"}, console=quiet, command=fake_painter, **options)
    shutil.rmtree(folder / "runs")
    path.unlink()
    return folder / "kept"


def test_one_report_of_all_from_the_kept_results_alone(kept: Path) -> None:
    text = rebuild(kept).read_text()
    for name in ("trio", "duo"):
        assert f'<header id="{name}">' in text
        assert f'href="#{name}"' in text
    assert text.index("all | tokens stay level") < text.index("all tokens beat masked ones")  # numbered ones first
    assert text.count('<table class="overview">') == 1
    assert "http" not in re.sub(r'data:image/[^"]*', "", text)
    assert len(text) < 1_000_000


def test_pictures_of_cells_in_both_studies_are_there_once(kept: Path) -> None:
    text = rebuild(kept).read_text()
    defined = re.findall(r'<image id="(p\w+)"', text)
    assert len(defined) == len(set(defined)) == 2 + 3 * 3 - _equal_panels(kept)  # image, truth; three kinds a variant
    assert text.count("<use ") == 2 * 3 * 5


def _equal_panels(kept: Path) -> int:
    strips = list((kept / "trio").rglob("pictures/*.webp")) + list((kept / "duo").rglob("pictures/*.webp"))
    return 2 + 3 * 3 - len({path.read_bytes() for path in strips})


def test_a_study_in_the_folder_has_a_report_of_its_own(kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "kept")
    text = rebuild(tmp_path / "kept" / "trio").read_text()
    assert "overview" not in text.split("</style>")[1]


def test_markdown_has_claims_scores_and_commands(kept: Path) -> None:
    rebuild(kept)
    text = (kept / "README.md").read_text()
    assert "| 2 | all \\| tokens stay level | **not reproduced** | +" in text
    assert "|  | all tokens beat masked ones | **reproduced** | +" in text
    assert "| 0 ± 5.0 | 3 | mIoU final |  | duo | Table 3 |" in text
    assert "| + | 3 | mIoU final |  | trio | Table 3 |" in text
    assert "`ibotpp`: all tokens" in text
    assert "Test CPU" in text
    assert "`0123456789ab`" in text
    assert "One row anew (VARIANT as in the table, without .average): `distill study" in text
    assert "--seeds 3 --only VARIANT --again" in text


def test_measured_interval_and_verdict_of_a_line(kept: Path) -> None:
    line = next(line for line in all_claim_lines(load_studies(kept)) if line.study == "trio")
    change = line.finding.difference
    assert change is not None and change.low is not None and change.high is not None
    assert line.measured == f"{100 * change.mean:+.1f}"
    assert line.interval == f"{100 * change.low:+.1f} to {100 * change.high:+.1f}".replace("-", "−")
    assert line.seeds == "3"


def test_a_claim_on_the_value_path_shows_the_final_tokens_too_and_mixed_precision_is_said(kept: Path) -> None:
    results = load_studies(kept)["trio"]
    results["claims"][0]["metric"] = "zeroshot_seg/miou_value"
    for row in results["rows"]:
        row["metrics"]["zeroshot_seg/miou_value"] = 0.5
        row["environment"]["precision"] = "fp32" if row["variant"] == "ibotpp" else "bf16"
    line = all_claim_lines({"trio": results})[0]
    final = next(line for line in all_claim_lines(load_studies(kept)) if line.study == "trio")
    assert line.measured == "+0.0"
    assert line.final == f"{final.measured} ({final.interval})"
    assert line.seeds == "3, bf16 against fp32"
    assert final.final == ""


def test_an_interval_is_drawn_beside_what_was_expected(kept: Path) -> None:
    line = next(line for line in all_claim_lines(load_studies(kept)) if line.study == "duo")  # 0 within 5 points
    change = line.finding.difference
    assert change is not None and change.low is not None and change.high is not None
    limit = widest([line])
    assert limit == pytest.approx(100 * max(abs(change.low), abs(change.high)))
    picture = interval_svg(line, 20.0)
    left, width = (float(re.search(rf' {name}="([\d.]+)"', picture)[1]) for name in ("x", "width"))
    zero, low, high = (
        float(re.search(rule, picture)[1]) for rule in (r"zero\" d=\"M([\d.]+)", r"reach\" d=\"M([\d.]+)", r"H([\d.]+)")
    )
    assert left + width / 2 == pytest.approx(zero, abs=0.1) == pytest.approx(WIDTH / 2, abs=0.1)
    unit = (WIDTH - 8) / 40.0  # px a point
    assert width == pytest.approx(10 * unit, abs=0.2)
    assert (low - zero, high - zero) == pytest.approx((100 * change.low * unit, 100 * change.high * unit), abs=0.2)
    far = interval_svg(line, 1.0)
    assert "cx" in far and "-" not in re.sub(r"aria-label=\"[^\"]*\"", "", far).split("viewBox")[1]  # ends at the axis
    assert f'aria-label="{line.measured}, {line.interval}"' in picture


def test_no_interval_is_drawn_for_other_units_or_without_a_number(kept: Path) -> None:
    line = all_claim_lines(load_studies(kept))[0]
    assert interval_svg(replace(line, scaled=1.0), 20.0) == ""
    assert widest([replace(line, scaled=1.0)]) == 0.0
    assert interval_svg(line, widest([])) == ""
    missing = replace(line, finding=replace(line.finding, difference=None))
    assert (interval_svg(missing, 20.0), widest([missing])) == ("", 0.0)


def test_one_seed_is_a_dot(kept: Path) -> None:
    results = load_studies(kept)["trio"]
    results["rows"] = [row for row in results["rows"] if row["seed"] == 0]
    picture = interval_svg(claim_lines(results)[0], 20.0)
    low, high = re.search(r"reach\" d=\"M([\d.]+) 9.0H([\d.]+)", picture).groups()
    assert low == high


def test_the_overview_counts_verdicts_and_lists_what_is_not_measured(kept: Path) -> None:
    studies = load_studies(kept)
    page = build_overview(studies, kept)
    assert '<li>1 <span class="verdict reproduced">reproduced</span></li>' in page
    assert '<li>1 <span class="verdict not-reproduced">not reproduced</span></li>' in page
    assert "Not measured yet" not in page
    studies["duo"]["claims"][0]["metric"] = "nothing/measured"
    page = build_overview(studies, kept)
    assert (
        "Not measured yet</h2><ul class='small'><li><a href=\"#duo\">duo</a>: 2: all | tokens stay level</li>" in page
    )
    assert page.split('<table class="overview">')[1].split("</table>")[0].count("<tr>") == 1 + 1  # heads, trio's claim


def test_how_a_verdict_is_made_is_said_once(kept: Path) -> None:
    text = rebuild(kept).read_text()
    assert text.count("How a verdict is made: ") == 1
    assert text.count('<a href="#claims">above') == 2  # in each study
    assert '<header id="claims">' in text


def test_different_hardware_of_a_pair_is_said(kept: Path) -> None:
    results = load_studies(kept)["trio"]
    for row in results["rows"]:
        row["environment"]["device"] = f"CPU {row['seed']}"
    assert claim_lines(results)[0].seeds == "3"  # different, but not within a seed
    next(row for row in results["rows"] if row["variant"] == "ibotpp")["environment"] = {"device": "AMD EPYC"}
    assert claim_lines(results)[0].seeds == "3, different hardware"
    assert "Seeds: 3, different hardware. Scale: default: tiny/8, 64 px, AMD EPYC; CPU 0;" in claim_list(results)
    table = difference_table(results)
    assert 'ibot → ibotpp<small class="by">changes tokens; different hardware</small>' in table
    assert table.count("different hardware") == 1
    assert findings(results)[0].as_dict()["elsewhere"] is True


def test_a_claim_that_two_studies_make_of_the_same_runs_is_there_once(kept: Path) -> None:
    studies = load_studies(kept)
    twin = {**copy.deepcopy(studies["trio"]), "study": "twin"}
    lines = all_claim_lines({**studies, "twin": twin})
    assert [line.where for line in lines] == ["duo", "trio (the same runs: twin)"]
    page = build_overview({**studies, "twin": twin}, kept)
    assert '<a href="#trio">trio</a> (the same runs: twin): ' in page
    more = {**twin, "claims": [*twin["claims"], {**twin["claims"][0], "metric": "zeroshot_seg/miou_value"}]}
    lines = all_claim_lines({**studies, "twin": more})  # in the words of the one that has more to say
    assert [line.where for line in lines] == ["duo", "twin (the same runs: trio)", "twin"]
    extra = copy.deepcopy(next(row for row in twin["rows"] if row["variant"] == "ibot"))
    twin["rows"].append({**extra, "seed": 9, "address": "of a seed that the other side lacks"})
    assert [line.where for line in all_claim_lines({**studies, "twin": twin})] == ["duo", "trio (the same runs: twin)"]
    twin["rows"][0]["address"] = "another run"
    assert [line.where for line in all_claim_lines({"trio": studies["trio"], "twin": twin})] == ["trio", "twin"]


def test_a_report_takes_words_and_cells_from_the_recipe_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "POLL", 0.01)
    monkeypatch.setenv("FAKE_STEPS", "1")
    path = write_recipe(tmp_path)
    options = {"runs": tmp_path / "runs", "console": Console(file=io.StringIO())}
    study(path, {"train.accelerator": "cpu"}, command=fake_painter, **options)
    text = path.read_text()
    path.write_text(text.replace("all tokens beat masked ones", "all tokens are worth it"))
    rebuild(tmp_path / "runs")
    assert "all tokens are worth it" in (tmp_path / "runs" / "README.md").read_text()
    path.write_text(
        text.replace("all tokens beat masked ones", "never told").replace("mask.ratio: 0}", "mask.ratio: 0.1}")
    )
    rebuild(tmp_path / "runs")  # the stored rows are not those of this recipe
    assert "all tokens are worth it" in (tmp_path / "runs" / "README.md").read_text()


def test_command_line_reports_a_folder_of_studies(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(kept), "--report"]) == 0
    said = capsys.readouterr().out
    assert "README.md" in said
    assert "report.html" in said


def test_the_claim_table_goes_between_its_marks(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    words = ["study", str(kept), "--report", "--claims", str(page)]
    assert main(words) == 2
    assert "there is no such file" in capsys.readouterr().err
    page.write_text("<!-- claims -->\n")
    assert main(words) == 2
    assert "has no place for the claim table" in capsys.readouterr().err
    page.write_text("# Page\n\n<!-- claims -->\nold\n<!-- /claims -->\n\nMore.\n")
    assert main(words) == 0
    claims = markdown.short_claims(load_studies(kept))
    assert page.read_text() == f"# Page\n\n<!-- claims -->\n{claims}\n<!-- /claims -->\n\nMore.\n"
    assert main(["study", str(kept / "duo"), "--report", "--claims", str(page)]) == 2
    assert "is for several studies" in capsys.readouterr().err


def test_claims_that_nothing_measures_are_named_below_the_short_table(kept: Path) -> None:
    studies = load_studies(kept)
    whole = markdown.short_claims(studies)
    assert whole.startswith("|  | claim | verdict | measured |")
    assert "Table 3" not in whole
    assert "Not measured" not in whole
    studies["duo"]["rows"] = []
    text = markdown.short_claims(studies)
    assert "|  | all tokens beat masked ones | **reproduced** | +" in text
    assert text.endswith("Not measured yet:\n\n- `duo`: 2: all | tokens stay level")


def test_a_claim_that_is_younger_than_its_results_is_marked(edit: Callable[[str, str], Path], kept: Path) -> None:
    claim = read_study(edit("source: Table 3,", "source: Table 3, after: seed 0,")).claims[0]
    assert claim.after == "seed 0"
    studies = load_studies(kept)
    assert "†" not in markdown.short_claims(studies)
    studies["trio"]["claims"] = [asdict(claim)]
    text = markdown.short_claims(studies)
    assert "|  | all tokens beat masked ones † | **reproduced** |" in text
    assert text.endswith("\n\n† written, or its margin set, when results of the claim were known already.")
    assert "| Table 3; written after seed 0 |" in markdown.claim_table(studies)
    assert "Source: Table 3; written after seed 0." in claim_list(studies["trio"])
    assert "all tokens beat masked ones. †</p>" in claim_list(studies["trio"])
    assert "†" not in claim_list(studies["duo"])


@pytest.mark.skipif(not any(KEPT.glob("*/results.json")), reason="no results of the studies yet")
def test_the_readmes_claims_are_those_of_the_results(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", page)
    markdown.put_claims(page, load_studies(KEPT))
    command = f"distill study {KEPT.relative_to(ROOT)} --report --claims README.md"
    assert page.read_text() == (ROOT / "README.md").read_text(), f"run: {command}"
    assert (KEPT / "README.md").read_text() == markdown.readme(load_studies(KEPT), KEPT), f"run: {command}"


@pytest.mark.parametrize("name", sorted(load_studies(KEPT)))
def test_kept_results_have_the_claims_of_their_recipe(name: str) -> None:
    kept = load_studies(KEPT)[name]
    recipe = read_study(f"study/{name.removesuffix('_' + str(kept['scale']))}", kept["scale"])
    assert kept["claims"] == [asdict(claim) for claim in recipe.claims], (
        "run: distill study docs/results/study --report"
    )
    assert list(kept["variants"]) == list(recipe.variants)
