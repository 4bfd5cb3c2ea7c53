"""again.json in a study's folder: the cells that are still to be run anew, {name: address}.

--again sets finished cells aside. Until the new runs are done, a study that was stopped must not take the old ones
back.
"""

from __future__ import annotations

from pathlib import Path

from distill.study.plan import Cell
from distill.study.store import read_json, write_json

AGAIN = "again.json"


class Again:
    """The list of one study; the file is gone when nothing is left on it."""

    def __init__(self, root: Path):
        self.path = root / AGAIN
        self.addresses = dict(read_json(self.path) or {})

    def __contains__(self, cell: Cell) -> bool:
        """Whether this cell, with the settings it has now, is to be run anew."""
        return bool(self.addresses.get(cell.name) == cell.address)

    def add(self, cell: Cell) -> None:
        self.addresses[cell.name] = cell.address
        write_json(self.path, self.addresses)

    def remove(self, cell: Cell) -> None:
        """Take a cell off that is done; nothing happens where it is not on the list."""
        if cell not in self:
            return
        del self.addresses[cell.name]
        if self.addresses:
            write_json(self.path, self.addresses)
        else:
            self.path.unlink()
