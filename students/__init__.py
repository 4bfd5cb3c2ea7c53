"""Students: their sizes, how they are built and how they start."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from students.architectures import ARCHITECTURES, parse_arch

if TYPE_CHECKING:
    from students.build import build_model
    from students.initialisation import apply_freeze, initialise

__all__ = ["ARCHITECTURES", "apply_freeze", "build_model", "initialise", "parse_arch"]


def __getattr__(name: str) -> Any:
    """Loads what needs torch only when it is asked for: recipes are checked by the sizes alone."""
    if name == "build_model":
        return import_module("students.build").build_model
    if name in ("apply_freeze", "initialise"):
        return getattr(import_module("students.initialisation"), name)
    raise AttributeError(f"module 'students' has no attribute '{name}'")
