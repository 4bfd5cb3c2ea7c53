"""The command line: verbs, words in any order, one-line errors."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

import distill
from distill import cli
from distill.errors import UserError


@pytest.fixture
def error(capsys, tmp_path, monkeypatch):
    """Runs words that must be refused with status 2 and nothing on standard output; gives the message."""
    monkeypatch.chdir(tmp_path)

    def _error(*words: str) -> str:
        assert cli.main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        return err.removeprefix("error: ").rstrip("\n")

    return _error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["rnu"],
            "Unknown verb 'rnu'. Did you mean 'run'? Allowed: " + ", ".join(cli.VERBS),
        ),
        (["--resume"], "'--resume' is not a verb. distill is followed by one of: ls,"),
        (["run"], "the following arguments are required: RECIPE. Usage: distill run [-h] [--resume]"),
        (["run", "pretrain/scene_tiny"], "Unknown recipe 'pretrain/scene_tiny'. Did you mean 'pretrain/scenes_tiny'"),
        (["run", "pretrain/scenes_tiny", "--reume"], "unknown flag '--reume'. Did you mean '--resume'?"),
        (["run", "pretrain/scenes_tiny", "--res"], "unknown flag '--res'"),
        (["run", "pretrain/scenes_tiny", "--lr", "3"], "settings are written key=value. Did you mean 'optim.lr'"),
        (["run", "pretrain/scenes_tiny", "--mask.ratio=3"], "settings are written key=value: mask.ratio=3"),
        (
            ["run", "pretrain/scenes_tiny", "seed=1", "--resume", "sed=1"],
            "command line: sed: unknown key. Did you mean",
        ),
        (["run", "distill/scenes_tiny_student"], "leaves these to you: teacher.source=..."),
        (["check", "pretrain/scenes_tiny", "--jsn"], "unknown flag '--jsn'. Did you mean '--json'?"),
        (["cp", "pretrain/scenes_tiny"], "the following arguments are required: FILE"),
        (["cp", "pretrain/scenes_tiny", "a.yaml", "b"], "'b' is one word too many for distill cp"),
        (["cp", "pretrain/scenes_tiny", "--froce", "b"], "unknown flag '--froce'; distill cp knows --help"),
        (["cp", "pretrain/scenes_tiny", "mine"], "'mine' does not end in .yaml"),
        (["cp", "pretrain/scenes_tiny", "no/such/mine.yaml"], "cannot be written: No such file or directory"),
        (["ls", "nothing-like-it"], "No recipe's name contains 'nothing-like-it'"),
        (["cache", "distill/scenes_tiny_student"], "leaves these to you: teacher.source=..."),
        (["cache", "distill/scenes_tiny_student", "teacher.source=run:x"], "teacher.cache.path is null, so nothing is"),
        (["data"], "distill data is followed by one of: pack, look"),
        (["data", "pakc"], "Did you mean 'pack'?"),
        (["eval"], "distill eval needs a model: distill eval MODEL task=dataset"),
        (["study", "study/demo", "--sede", "2"], "unknown flag '--sede'. Did you mean '--seeds'?"),
    ],
)
def test_refused_with_one_line(error, words, expected):
    message = error(*words)
    assert expected in message
    assert "\n" not in message


def test_words_and_flags_in_any_order():
    args = cli.parse(["run", "--runs", "out", "R", "a=1", "--resume", "b=2"])
    assert (args.recipe, args.overrides, args.runs, args.resume) == ("R", ["a=1", "b=2"], "out", True)
    args = cli.parse(["run", "R"])
    assert (args.recipe, args.overrides, args.runs, args.resume, args.dry_run) == ("R", [], "runs", False, False)


def test_nested_verbs_and_their_flags():
    args = cli.parse(["data", "pack", "in", "out", "--shard-size", "7"])
    assert (str(args.src), str(args.out), args.shard_size) == ("in", "out", 7)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_and_imports_no_torch_for_it(verb):
    code = f"import sys; from distill.cli import main\ntry: main(['{verb}', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: distill {verb}" in done.stdout


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_the_verbs(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(f"distill {verb}" in out for verb in cli.VERBS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"distill {distill.__version__}\n"


def test_ls_groups_recipes_with_purpose_and_cost(capsys):
    assert cli.main(["ls"]) == 0
    out = capsys.readouterr().out
    assert out.index("pretrain: ") < out.index("pretrain/scenes_tiny") < out.index("distill: ") < out.index("study: ")
    assert "Pretrain a tiny teacher with iBOT++" in out
    assert "costs 90,000 steps of 8,192 images" in out
    assert "reproduces in small, Table 2 of the paper, and the rows that it lacks" in out
    assert max(map(len, out.splitlines())) > 120  # a text is one line there
    assert cli.main(["ls", "g14"]) == 0
    assert "scenes_tiny" not in capsys.readouterr().out


def test_ls_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.main(["ls", "pretrain/"]) == 0
    lines = capsys.readouterr().out.splitlines()[:-1]  # less what comes next
    assert max(map(len, lines)) <= 60
    assert all(line.startswith("      ") for line in lines if line.startswith("   "))


def test_cp_copies_once(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cp", "pretrain/scenes_tiny", "mine.yaml"]) == 0
    assert "distill check mine.yaml" in capsys.readouterr().out
    copied = Path("mine.yaml").read_text()
    assert copied.startswith("# Pretrain a tiny teacher")
    Path("mine.yaml").write_text("changed")
    assert cli.main(["cp", "pretrain/scenes_tiny", "mine.yaml"]) == 2
    assert "'mine.yaml' exists already" in capsys.readouterr().err
    assert Path("mine.yaml").read_text() == "changed"
    Path("folder").mkdir()
    assert cli.main(["cp", "pretrain/scenes_tiny", "folder"]) == 0
    assert Path("folder/scenes_tiny.yaml").read_text() == copied


def test_run_passes_on_what_it_is_told(monkeypatch):
    called = []
    monkeypatch.setattr("distill.training.run.run", lambda *args, **kwargs: called.append((args, kwargs)))
    assert cli.main(["run", "pretrain/scenes_tiny", "seed=1", "--resume", "--runs", "out"]) == 0
    assert cli.main(["run", "pretrain/scenes_tiny", "--dry-run"]) == 0
    assert called == [
        (("pretrain/scenes_tiny", ["seed=1"]), {"resume": True, "dry_run": False, "runs": "out"}),
        (("pretrain/scenes_tiny", []), {"resume": False, "dry_run": True, "runs": "runs"}),
    ]


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [(UserError("bad value"), 2, "error: bad value\n"), (KeyboardInterrupt(), 130, "interrupted\n")],
)
def test_what_a_verb_raises_becomes_a_status(monkeypatch, capsys, raised, status, said):
    def stop(*args: object, **kwargs: object) -> None:
        raise raised

    monkeypatch.setattr("distill.training.run.run", stop)
    assert cli.main(["run", "pretrain/scenes_tiny"]) == status
    assert capsys.readouterr().err == said


def test_a_bug_shows_its_traceback(monkeypatch):
    def stop(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("distill.training.run.run", stop)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "pretrain/scenes_tiny"])


def test_a_closed_pipe_is_not_an_error():
    code = f"'{sys.executable}' -m distill ls | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_the_package_offers_its_functions_without_torch():
    code = "import sys, distill; sys.exit('torch' in sys.modules or not {'run', 'study', 'load'} <= set(dir(distill)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_functions_are_those_of_the_parts():
    from distill.evals.evaluate import evaluate
    from distill.models.sources import load
    from distill.training.run import run

    assert (distill.run, distill.load, distill.evaluate) == (run, load, evaluate)
    assert callable(distill.study)
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = distill.runn


@pytest.mark.parametrize("verb", [[], *([verb] for verb in cli.VERBS), ["data", "pack"], ["data", "look"]])
def test_help_fits_80_columns(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):
        cli.main([*verb, "--help"])
    text = capsys.readouterr().out
    assert text
    assert [line for line in text.splitlines() if len(line) > 80] == []
