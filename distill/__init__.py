"""EveryPatch: pretraining and distillation of image-text encoders that supervise every patch.

`run`, `study`, `load`, `evaluate` and `export` are the Python twins of the command line's verbs. Importing this package
imports neither torch nor any of its parts; each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from distill.errors import UserError

if TYPE_CHECKING:
    from distill.evals.evaluate import evaluate
    from distill.export.run import export
    from distill.models.sources import load
    from distill.study import study
    from distill.training.run import run

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "evaluate", "export", "load", "run", "study"]

_PLACES = {
    "run": ("distill.training.run", "run"),
    "study": ("distill.study", "study"),  # the package itself: it is callable
    "export": ("distill.export", "export"),  # the package itself: it is callable
    "load": ("distill.models.sources", "load"),
    "evaluate": ("distill.evals.evaluate", "evaluate"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'distill' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    globals()[name] = value = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
