"""The wheel holds everything that the command line reads, so that it works away from a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the sources (the build leaves files behind), without fetching anything."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("distill", "teachers", "students", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    return next(source.glob("everypatch-*.whl"))


def distill(wheel: Path, folder: Path, *words: str) -> str:
    """What the command prints when only the wheel has it."""
    command = [sys.executable, "-m", "distill", *words]
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    return subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_recipes_travel_with_the_wheel(wheel, tmp_path):
    listed = distill(wheel, tmp_path, "ls")
    for recipe in (ROOT / "recipes").glob("*/*.yaml"):
        assert f"{recipe.parent.name}/{recipe.stem}" in listed
    distill(wheel, tmp_path, "cp", "pretrain/scenes_tiny", "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == (ROOT / "recipes/pretrain/scenes_tiny.yaml").read_text()


def test_data_files_travel_with_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "distill").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    assert not set(wanted) - packed
