"""How a run is stopped from outside: by Ctrl-C or SIGTERM, on one rank or on all, with its state saved."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from distill.objectives.distributed import all_reduce_sum


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C or SIGTERM) and has saved its state."""


@dataclass
class StopRequest:
    """Set by Ctrl-C or SIGTERM: the current step is finished and saved first; a second Ctrl-C stops at once."""

    asked: bool = False
    _previous: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not in the main thread: the caller handles signals
                return self
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


class StopVote:
    """Whether any rank was asked to stop; all ranks get the same answer after the same step.

    An accelerator's answer is that of the step before, which is there already: none waits for the step it is in.
    """

    def __init__(self, fabric: Fabric):
        self.fabric = fabric
        self.before: tuple[Tensor, Any] | None = None  # an accelerator's last vote, and when it is in

    def passed(self, asked: bool) -> bool:
        fabric = self.fabric
        if fabric.world_size == 1:
            return asked
        votes = all_reduce_sum(torch.full((), float(asked), device=fabric.device))
        if fabric.device.type == "cpu":
            return bool(votes > 0)
        before, self.before = self.before, _on_its_way(votes)
        if before is None:
            return False
        before[1].synchronize()
        return bool(before[0] > 0)


def _on_its_way(votes: Tensor) -> tuple[Tensor, Any]:
    """A copy on the host, and the event that tells when it holds `votes`."""
    there = torch.empty_like(votes, device="cpu", pin_memory=True).copy_(votes, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return there, event
