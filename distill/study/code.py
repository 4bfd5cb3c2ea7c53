"""Which code made a result: a digest of the sources that training and evaluation run."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("distill", "teachers", "students")
OUTSIDE = ("study", "cli.py", "check.py")  # of distill: they neither train nor score


def code_digest() -> str:
    """12 hex digits over the installed sources, by relative path and content."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = find_spec(package)
        for root in sorted(spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(root).rglob("*.py")):
                relative = path.relative_to(root)
                if package == "distill" and relative.parts[0] in OUTSIDE:
                    continue
                digest.update(f"{package}/{relative.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
