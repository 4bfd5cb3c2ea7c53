"""Which sample comes when: a pure function of (seed, epoch, position), the same for any number of workers and ranks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from distill.errors import UserError

# Streams of randomness. Every draw is keyed by (stream, seed, and what it is for), never by what was drawn before.
RUNS, WINDOW, CAPTION, CROPS, MASK, BUFFER, SHARDS = range(7)

RUN_SHARE = 32  # a shuffle window mixes this many runs of neighbouring samples
KEPT = 8  # permutations kept in memory


def keyed_rng(stream: int, *key: int) -> np.random.Generator:
    """A generator that depends on `stream` and `key` (non-negative integers) alone."""
    return np.random.default_rng((stream, *key))


class Order:
    """The order of samples over epochs, by random access, in memory of O(shuffle + length / run).

    The source is passed through again and again. In each pass, runs of neighbouring samples (`shuffle` / 32 long) come
    in random order, and within every window of `shuffle` samples the order is random; with `shuffle` >= `length` that
    is a plain permutation, with `shuffle` = 0 the stored order. Reads stay nearly sequential inside a run.

    An epoch is `epoch_size` samples (None: one pass). Epochs follow each other through the passes: shorter ones share a
    pass without repeating a sample, longer ones begin the next. Only an epoch of exactly one pass is a permutation.
    With `repeat`, epoch e has the order of epoch e mod `repeat`.
    """

    def __init__(
        self, length: int, seed: int = 0, shuffle: int = 0, epoch_size: int | None = None, repeat: int | None = None
    ):
        if length < 1:
            raise UserError(f"The source holds {length} samples; at least 1 is needed. Check data.shards.")
        if shuffle < 0 or (epoch_size is not None and epoch_size < 1):
            raise UserError(f"data.shuffle is {shuffle} and data.epoch {epoch_size}. Allowed: at least 0 and 1.")
        self.length, self.seed, self.shuffle = length, seed, min(shuffle, length)
        self.epoch_size, self.repeat = epoch_size or length, repeat
        self.run = max(1, self.shuffle // RUN_SHARE)
        self._kept: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()

    def split(self, number: int) -> tuple[int, int]:
        """`(epoch, position)` of the `number`-th sample drawn since the beginning of training."""
        return divmod(number, self.epoch_size)

    def index(self, epoch: int, position: int) -> int:
        """The source index of the sample at `position` in `epoch`."""
        if not 0 <= position < self.epoch_size:
            raise IndexError(f"position {position} in an epoch of {self.epoch_size}")
        passes, place = divmod(self.row(epoch, position), self.length)
        if self.shuffle <= 1:
            return place
        window, inside = divmod(place, self.shuffle)
        size = min(self.shuffle, self.length - window * self.shuffle)  # the last window of a pass may be shorter
        shuffled = window * self.shuffle + self._permutation(WINDOW, passes, window, size=size)[inside]
        return self._unroll(passes, int(shuffled))

    def row(self, epoch: int, position: int) -> int:
        """A number for the place, the same for places with the same sample and crops: counted on, or in the period."""
        return (epoch if self.repeat is None else epoch % self.repeat) * self.epoch_size + position

    def epoch(self, epoch: int) -> Iterator[int]:
        """The source indices of one epoch, in order."""
        return (self.index(epoch, position) for position in range(self.epoch_size))

    def _unroll(self, passes: int, place: int) -> int:
        """The index at `place` of the runs laid out in this pass's order."""
        count = -(-self.length // self.run)
        runs = self._permutation(RUNS, passes, size=count)
        short = self.length - (count - 1) * self.run  # length of the last run; the others are full
        where = int(self._permutation(RUNS, passes, size=count, inverse=True)[count - 1])  # its rank in this pass
        if place < where * self.run:
            rank, inside = divmod(place, self.run)
        elif place < where * self.run + short:
            rank, inside = where, place - where * self.run
        else:
            rank, inside = divmod(place - short, self.run)
            rank += 1
        return int(runs[rank]) * self.run + inside

    def _permutation(self, stream: int, *key: int, size: int, inverse: bool = False) -> np.ndarray:
        name = (stream, *key, int(inverse))
        if name not in self._kept:
            if inverse:
                found = np.argsort(self._permutation(stream, *key, size=size))
            else:
                found = keyed_rng(stream, self.seed, *key).permutation(size)
            self._kept[name] = found
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        return self._kept[name]
