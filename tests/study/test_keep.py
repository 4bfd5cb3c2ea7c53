"""What --keep writes, and that it is found again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.study.address import placeless, same_content
from distill.study.keep import POINTS
from distill.study.run import StudyResult
from distill.study.store import read_json, read_result

Play = Callable[..., StudyResult]
TESTS = Path(__file__).parent


def load(path: Path) -> dict[str, Any]:
    content = read_json(path)
    assert content is not None
    return content


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data.shards=/home/me/photos/a-{0..3}.tar", "data.shards=DIR/a-{0..3}.tar"),
        ("folder:/data/val", "folder:DIR/val"),
        ("'/my data/x'", "'/my data/x'"),
        ("https://host.org/a/b.tar", "https://host.org/a/b.tar"),
        ("runs/trio/cells", "runs/trio/cells"),
        ("../shared/a.tar", "../shared/a.tar"),
        ("web / synthetic", "web / synthetic"),
    ],
)
def test_folders_of_absolute_paths_are_left_out(text: str, expected: str) -> None:
    assert placeless({"x": [text, 1]}) == {"x": [expected, 1]}


def test_a_kept_path_is_that_of_any_folder_but_not_another_file() -> None:
    assert same_content({"data.shards": "DIR/a.tar"}, {"data.shards": "/here/it/is/a.tar"})
    assert not same_content({"data.shards": "DIR/a.tar"}, {"data.shards": "/here/b.tar"})
    assert not same_content({"data.shards": "/there/a.tar"}, {"data.shards": "/here/a.tar"})


def test_every_finished_cell_is_kept_small_and_without_paths(play: Play, kept: Path, tmp_path: Path) -> None:
    result = play(seeds=2, keep=kept)
    assert sorted(p.name for p in (kept / "trio").iterdir()) == ["cells", "claims.json", "results.json"]
    names = {f"{v}-s{s}" for v in ("ibot", "ibotpp", "unmasked") for s in (0, 1)}
    assert {p.name for p in (kept / "trio" / "cells").iterdir()} == names
    for path in kept.rglob("*"):
        assert path.is_dir() or str(tmp_path) not in path.read_text()
    first, second = (load(kept / "trio" / "cells" / f"ibotpp-s{s}" / "cell.json") for s in (0, 1))
    assert len(first["curves"]["patch_visible"]["step"]) == POINTS
    assert second["curves"] == {}
    assert first["metrics"] == load(result.folder / "cells" / "ibotpp-s0" / "cell.json")["metrics"]
    results = load(kept / "trio" / "results.json")
    assert [(r["variant"], r["seed"], r["metrics"]) for r in results["rows"]] == [
        (r["variant"], r["seed"], r["metrics"]) for r in result.results["rows"]
    ]


def test_pictures_of_the_first_seed_are_kept_as_small_strips(painted: Path, tmp_path: Path) -> None:
    from PIL import Image

    from distill.study.keep import keep_pictures

    for _ in range(2):  # the second time from the strips
        keep_pictures(painted / "cells" / "ibot-s0" / "pictures", tmp_path / "pictures")
    strips = sorted(p.name for p in (tmp_path / "pictures").glob("*.webp"))
    assert strips == ["final.webp", "image.webp", "pca.webp", "truth.webp", "value.webp"]
    with Image.open(tmp_path / "pictures" / "image.webp") as strip:
        assert strip.size == (6 * 64, 64)
    assert sum(p.stat().st_size for p in (tmp_path / "pictures").iterdir()) < 40_000


def test_on_another_machine_nothing_kept_runs_again(play: Play, kept: Path, tmp_path: Path) -> None:
    play(keep=kept)
    before = load(kept / "trio" / "results.json")
    result = play(keep=kept, runs=tmp_path / "elsewhere")
    assert result.complete
    assert not list((tmp_path / "elsewhere").rglob("cell.log"))
    after = load(kept / "trio" / "results.json")
    assert [row["metrics"] for row in after["rows"]] == [row["metrics"] for row in before["rows"]]


def test_a_kept_teacher_is_trained_again_for_a_student_that_is_not_kept(play: Play, kept: Path, tmp_path: Path) -> None:
    play(keep=kept, only=["ibot"])
    result = play(keep=kept, runs=tmp_path / "elsewhere")
    assert result.complete
    assert "ibot-s0 has a result but no weights, which unmasked-s0 needs" in play.said  # type: ignore[attr-defined]
    assert (tmp_path / "elsewhere" / "trio" / "cells" / "ibot-s0" / "cell.log").exists()


def test_a_teacher_half_trained_again_is_not_taken_for_a_finished_one(play: Play, kept: Path, tmp_path: Path) -> None:
    play(keep=kept, only=["ibot"])
    half = tmp_path / "elsewhere" / "trio" / "cells" / "ibot-s0" / "run" / "checkpoints" / "step_00000010.pt"
    half.parent.mkdir(parents=True)
    half.write_text("{}")
    result = play(keep=kept, runs=tmp_path / "elsewhere")
    assert result.complete
    assert (half.parents[2] / "cell.log").exists()


def test_a_cell_of_several_studies_is_stored_once(play: Play, kept: Path, tmp_path: Path) -> None:
    play(keep=kept)
    play(keep=kept, name="second")
    reference = kept / "second" / "cells" / "ibot-s0"
    assert load(reference / "cell.json")["same_as"] == "trio/cells/ibot-s0"
    result = read_result(reference)
    assert result is not None
    assert result["curves"]
    assert len(load(kept / "second" / "results.json")["rows"]) == 3
    shutil.rmtree(tmp_path / "runs")
    assert play(keep=kept, name="third", runs=tmp_path / "elsewhere").complete
    assert not list((tmp_path / "elsewhere").rglob("cell.log"))


def test_another_run_of_a_cell_that_another_study_keeps_is_kept_too(
    play: Play, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(keep=kept)
    play(keep=kept, name="second")
    monkeypatch.setenv("FAKE_FINISHED", "2026-02-02T00:00:00Z")
    play(keep=kept, name="second", only=["ibot"], again=True)
    own, old = (load(kept / study / "cells" / "ibot-s0" / "cell.json") for study in ("second", "trio"))
    assert "same_as" not in own
    assert (own["finished"][:10], old["finished"][:10]) == ("2026-02-02", "2026-01-01")
    assert load(kept / "second" / "cells" / "ibotpp-s0" / "cell.json")["same_as"] == "trio/cells/ibotpp-s0"


def test_kept_results_stay_whole_when_fewer_seeds_or_variants_run(play: Play, kept: Path, tmp_path: Path) -> None:
    play(keep=kept, seeds=2)
    play(keep=kept, seeds=1, only=["ibotpp"], runs=tmp_path / "elsewhere")
    results = load(kept / "trio" / "results.json")
    assert (results["seeds"], len(results["rows"]), results["missing"]) == ([0, 1], 6, [])


def test_the_kept_command_runs_the_seeds_that_are_kept(play: Play, kept: Path, tmp_path: Path) -> None:
    play(keep=kept)
    assert "--seeds" not in load(kept / "trio" / "results.json")["command"]  # the recipe's
    play(keep=kept, seeds=2)
    assert "--seeds 2" in load(kept / "trio" / "results.json")["command"]
    play(keep=kept, seeds=[0, 3], runs=tmp_path / "elsewhere")
    assert "--seeds" not in load(kept / "trio" / "results.json")["command"]  # no flag names 0, 1 and 3


def test_other_settings_replace_what_was_kept(play: Play, kept: Path) -> None:
    play(keep=kept)
    old = load(kept / "trio" / "cells" / "ibot-s0" / "cell.json")["address"]
    play(keep=kept, overrides={"train.accelerator": "cpu", "optim.lr": 1e-4})
    assert load(kept / "trio" / "cells" / "ibot-s0" / "cell.json")["address"] != old


def test_a_study_whose_runner_is_killed_goes_on(play: Play, recipe: Path, kept: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from distill.study import runner\n"
        "from distill.study.run import study\n"
        "runner.POLL = 0.01\n"
        f"command = lambda spec: [sys.executable, '-S', {str(TESTS / 'fake_cell.py')!r}, str(spec)]\n"
        f"study({str(recipe)!r}, {{'train.accelerator': 'cpu'}}, runs={str(tmp_path / 'runs')!r}, "
        f"keep={str(kept)!r}, parallel=1, command=command)\n"
    )
    environment = {**os.environ, "FAKE_STEPS": "60", "FAKE_PAUSE": "0.01"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    cells = tmp_path / "runs" / "trio" / "cells"
    try:
        _wait(lambda: (read_json(cells / "ibotpp-s0" / "run" / "progress.json") or {}).get("step", 0) >= 5)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _wait((cells / "ibotpp-s0" / "run" / "state.json").exists)  # the cell saw that its runner is gone
    assert load(kept / "trio" / "results.json")["missing"] == ["ibotpp-s0", "unmasked-s0"]
    assert play(keep=kept).complete
    assert (cells / "ibot-s0" / "cell.log").read_text().count("started") == 1
    assert (cells / "ibotpp-s0" / "cell.log").read_text().splitlines()[0] == "started at step 0"
    assert int((cells / "ibotpp-s0" / "cell.log").read_text().split()[-1]) >= 5
    assert json.loads((kept / "trio" / "results.json").read_text())["missing"] == []


def _wait(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_reading_a_reference_whose_cell_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "second" / "cells" / "a-s0"
    place.mkdir(parents=True)
    (place / "cell.json").write_text('{"same_as": "first/cells/a-s0"}')
    assert read_result(place) is None


def test_a_mistake_is_said_before_anything_is_kept(play: Play, kept: Path) -> None:
    with pytest.raises(UserError):
        play(keep=kept, only=["nobody"])
    assert not kept.exists()
