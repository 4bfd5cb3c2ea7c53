import argparse

import pytest

from distill.data.cli import register, renamed
from distill.errors import UserError


def run(*words):
    parser = argparse.ArgumentParser(prog="distill")
    register(parser.add_subparsers())
    args = parser.parse_args([str(word) for word in words])
    return args.main(args)


@pytest.fixture
def folder(make, tmp_path):
    (tmp_path / "src").mkdir()
    rows = ["file,alt,note,split"]
    for n in range(5):
        (tmp_path / "src" / f"{n}.jpg").write_bytes(make.image(n))
        rows.append(f"{n}.jpg,text {n},n,{'val' if n == 4 else 'train'}")
    (tmp_path / "src" / "list.csv").write_text("\n".join(rows))
    return tmp_path


def test_pack_then_look(folder, capsys):
    out = folder / "out"
    flags = ("--shard-size", 3, "--workers", 1, "--split", "train", "--caption-fields", "web=alt", "note")
    assert run("data", "pack", folder / "src", out, *flags) == 0
    assert "4 samples in 2 shards" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*.tar")) == ["train-000000.tar", "train-000001.tar"]
    assert run("data", "look", out, "--out", folder / "sheet.png") == 0
    text = capsys.readouterr().out
    assert "4 samples in 2 shards" in text
    assert "captions 'web': in 4 samples, 1.0 a sample, words median 2" in text
    assert (folder / "sheet.png").exists()


def test_bad_words(folder, capsys):
    with pytest.raises(UserError, match="--samples is -1"):
        run("data", "look", folder, "--samples", -1)
    run("data", "pack", folder / "src", folder / "out", "--workers", 1)
    with pytest.raises(UserError, match="Cannot write"):
        run("data", "look", folder / "out", "--out", folder / "x.nope")
    capsys.readouterr()
    with pytest.raises(UserError, match=r"there is no folder .*none\. Make it first"):
        run("data", "look", folder / "out", "--out", folder / "none" / "x.png")
    assert "samples" not in capsys.readouterr().out  # nothing was read for it


def test_renamed():
    assert renamed(["web=alt", "note"]) == {"web": "alt", "note": "note"}
    for words in (["=alt"], ["web="], ["a", "a=b"]):
        with pytest.raises(UserError, match="Allowed: NAME or NEW=NAME"):
            renamed(words)
