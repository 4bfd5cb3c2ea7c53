"""Controlled comparisons: a grid of variants and seeds, each a training run, scored and reported together.

`distill.study(recipe, ...)` runs one: this package is itself callable (see `distill.study.run.study`).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """Lets `distill.study` be both the package and the function that runs a study."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from distill.study.run import study

        return study(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
study = sys.modules[__name__]
