from __future__ import annotations

import subprocess
import sys

import pytest

from distill.errors import UserError
from students import ARCHITECTURES, parse_arch


def test_names_in_any_case():
    arch = parse_arch("SO400M/16")
    assert (arch.size, arch.patch, arch.width, arch.depth, arch.heads, arch.mlp) == ("So400m", 16, 1152, 27, 16, 4304)
    assert arch.name == str(arch) == "So400m/16"
    assert parse_arch("b/14") == parse_arch("B/14")


@pytest.mark.parametrize("size", ARCHITECTURES)
@pytest.mark.parametrize("patch", [8, 14, 16])
def test_every_size_at_every_patch(size, patch):
    arch = parse_arch(f"{size}/{patch}")
    assert (arch.size, arch.patch) == (size, patch)
    assert arch.width % arch.heads == 0


def test_the_giant_is_gated_and_its_text_tower_is_not():
    arch = parse_arch("g/14")
    assert arch.ffn == "swiglu"
    assert arch.mlp == 4096  # two thirds of 6144, a multiple of 8
    assert arch.text_mlp == 6144


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tin/8", "Unknown size 'tin'. Did you mean 'tiny'"),
        ("H/14", "Allowed: B, L, S, So400m, g, tiny"),
        ("B/15", "Unknown patch '15' in 'B/15'. Allowed: 8, 14, 16; for example B/14"),
        ("B/", "Unknown patch ''"),
        ("B14", "write SIZE/PATCH"),
        ("", "write SIZE/PATCH"),
    ],
)
def test_errors(text, message):
    with pytest.raises(UserError, match=message):
        parse_arch(text)


def test_sizes_are_known_without_torch():
    code = "import sys, students; students.parse_arch('B/14'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attribute():
    import students

    with pytest.raises(AttributeError, match="nothing"):
        _ = students.nothing
