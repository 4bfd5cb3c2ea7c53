from __future__ import annotations

import sys

from PIL import Image

from distill.data.scenes import __main__ as command


def test_sheet_is_written_and_captions_are_printed(monkeypatch, tmp_path, capsys):
    file = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["scenes", "--sheet", str(file), "--size", "32"])
    command.main()
    with Image.open(file) as picture:
        assert picture.size == (3 * 4 * 34 * 2, 8 * 34 * 2)
        assert len(picture.convert("RGB").getcolors(10**6) or []) > 1000
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_rates_are_printed_for_each_size(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scenes", "--rate"])
    monkeypatch.setattr(command, "rate", lambda size: 100.0 + size)
    command.main()
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(command.SIZES)
    assert "164" in lines[1]


def test_rate_counts_rendered_scenes():
    assert command.rate(32, seconds=0.05) > 1
