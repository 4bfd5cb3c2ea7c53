"""Memory that a loop over chunks uses again and again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """Matrices made once and filled anew for every chunk, for code without gradients.

    On a CPU fresh memory is cleared page by page, which takes as long as what is then done with it.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, size: Sequence[int], like: Tensor) -> Tensor:
        """The matrix `name` of `size` (rows, columns), any content, of the dtype and on the device of `like`.

        The first one taken is the largest: later ones have as many rows or fewer. It is the same memory each time.
        """
        key = (name, like.dtype)
        if key not in self._made:
            self._made[key] = like.new_empty(tuple(size))
        return self._made[key][: size[0]]
