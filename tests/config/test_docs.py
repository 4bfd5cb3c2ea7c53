from __future__ import annotations

from pathlib import Path

import pytest

from distill.config.docs import page
from distill.config.fields import schema

ROOT = Path(__file__).parents[2]


def test_the_page_of_keys_is_up_to_date():
    assert (ROOT / "docs" / "config.md").read_text() == page(), "run: python -m distill.config.docs > docs/config.md"


@pytest.mark.parametrize("key", schema()[0])
def test_every_key_is_on_the_page_and_has_help(key):
    assert f"| `{key}` |" in page()
    assert len(schema()[0][key].help) > 5


@pytest.mark.parametrize("key", schema()[1])
def test_every_section_has_help(key):
    assert len(schema()[1][key]) >= 5
