"""Samples that could not be used: counted, kept by name, reported at the end, and too many of them stop the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from distill.data.sample import SampleError
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.views.batch import Batch

LEAST = 100  # samples drawn before the rate is judged
NAMED = 3  # failures an error message names
KEPT = 1000  # failures kept by name


class Failures:
    """What went wrong so far in this process. A sample drawn again counts again in the rate, but is listed once."""

    def __init__(self, max_rate: float = 1.0, damaged: Iterable[SampleError] = ()):
        self.max_rate = max_rate
        self.drawn = 0  # samples asked for
        self.failed = 0  # of which could not be used
        self.samples: dict[tuple[str, str], str] = {}  # (shard, key) -> reason, the first KEPT
        self.reasons: Counter[str] = Counter()  # distinct samples by reason, details in brackets left out
        self.damaged = list(damaged)  # found when the source was opened, before anything was drawn

    @property
    def rate(self) -> float:
        """Share of the samples drawn that could not be used."""
        return self.failed / self.drawn if self.drawn else 0.0

    def add(self, batch: Batch) -> None:
        """Notes a batch's samples and which of them were replaced. Raises UserError above the set rate."""
        self.drawn += len(batch)
        for error in batch.failures:
            self.failed += 1
            name = (error.shard, error.key)
            if name not in self.samples and len(self.samples) < KEPT:
                self.samples[name] = error.reason
                self.reasons[kind(error.reason)] += 1
        if self.drawn >= LEAST and self.rate > self.max_rate:
            raise UserError(
                f"{self.failed} of {self.drawn} samples ({self.rate:.1%}) could not be used; data.max_error_rate is "
                f"{self.max_rate:.1%}. First: {self._named()}. Repair the shards or raise data.max_error_rate."
            )

    def report(self) -> str:
        """What to print at the end: counts by reason, then each sample with its shard and key. Empty if none failed."""
        lines = []
        if self.failed:
            lines.append(f"{self.failed} of {self.drawn} samples ({self.rate:.2%}) were skipped:")
            lines += [f"  {count} x {reason}" for reason, count in self.reasons.most_common()]
            lines += [f"    {shard}: {key}: {reason}" for (shard, key), reason in self.samples.items()]
            if len(self.samples) == KEPT:
                lines.append(f"    (only the first {KEPT} are listed)")
        if self.damaged:
            lines.append(f"{len(self.damaged)} records were left out when the shards were opened:")
            lines += [f"    {error}" for error in self.damaged[:KEPT]]
        return "\n".join(lines)

    @classmethod
    def together(cls, ranks: Sequence[Failures]) -> Failures:
        """What went wrong on all ranks; records left out at opening are the same on each."""
        whole = cls(ranks[0].max_rate, ranks[0].damaged)
        samples = [item for rank in ranks for item in rank.samples.items()]
        whole.load(
            {
                "drawn": sum(rank.drawn for rank in ranks),
                "failed": sum(rank.failed for rank in ranks),
                "samples": [(*name, reason) for name, reason in list(dict(samples).items())[:KEPT]],
            }
        )
        return whole

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        samples = [(shard, key, reason) for (shard, key), reason in self.samples.items()]
        return {"drawn": self.drawn, "failed": self.failed, "samples": samples}

    def load(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's `state()`."""
        self.drawn, self.failed = state["drawn"], state["failed"]
        self.samples = {(shard, key): reason for shard, key, reason in state["samples"]}
        self.reasons = Counter(kind(reason) for reason in self.samples.values())

    def _named(self) -> str:
        return "; ".join(f"{s}: {k}: {reason}" for (s, k), reason in list(self.samples.items())[:NAMED])


def kind(reason: str) -> str:
    """A reason without its details: `"corrupt image (broken data stream)"` -> `"corrupt image"`."""
    return reason.partition(" (")[0]
