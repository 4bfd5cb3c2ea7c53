"""`distill export`: a model for other ecosystems, compared with the original before it is kept. One file a format."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """`distill.export(...)` is `distill.export.run.export(...)`: the package has the verb's name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from distill.export.run import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
export = sys.modules[__name__]
