"""Where tables are printed to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

IN_A_PIPE = 140  # columns


def output() -> Console:
    """Standard output: as wide as the terminal, or wide enough for our tables in a file or a pipe."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=IN_A_PIPE)
