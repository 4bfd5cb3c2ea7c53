from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distill.config.load import ConfigError, load_config


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a recipe file and gives its name; the working directory is the file's folder."""
    monkeypatch.chdir(tmp_path)

    def _write(text: str, name: str = "my.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return _write


@pytest.fixture
def problems(write: Callable[..., str]) -> Callable[..., list[str]]:
    """The problems of a recipe's text with overrides, as lines; fails when it loads."""

    def _problems(text: str, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_config(write(text), list(overrides))
        return [str(problem) for problem in caught.value.problems]

    return _problems
