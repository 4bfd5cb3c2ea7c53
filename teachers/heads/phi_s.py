"""`objective.feature_norm: phi_s`: measures the features that are regressed, before the first step."""

from __future__ import annotations

from distill.models.vision import ImageOutput
from distill.objectives.phi_s import PhiSNorm
from teachers.targets import TargetHeads


class Measurement:
    """Settles the PHI-S maps of `heads` on a stream of the teacher's clean outputs: `add` each batch, then `finish`."""

    def __init__(self, heads: TargetHeads):
        norms = {"cls": heads.cls_norm, "patch": heads.feature_norm}
        self.norms = {kind: norm for kind, norm in norms.items() if isinstance(norm, PhiSNorm)}

    def add(self, output: ImageOutput) -> None:
        """Takes in a batch: cls `[B, C, D]`, of which the first token counts, and patches `[B, N, D]`."""
        tokens = {"cls": output.cls[:, 0], "patch": output.patches}
        for kind, norm in self.norms.items():
            norm.accumulate(tokens[kind])

    def finish(self) -> None:
        for norm in self.norms.values():
            norm.settle()

    def report(self) -> str:
        """What came of it, in a few words."""
        return "features measured"
