"""A recipe's run as it is built here, before its first step: shared by `distill run` and `distill cache`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from distill.config.load import Resolved
from distill.config.schema import Config
from distill.data.captions import caption_fields
from distill.data.loader import Failures, build_loader
from distill.data.sources import caption_texts, open_source
from distill.training.assemble import Assembly, assemble
from distill.training.keep_targets import plan_targets
from distill.training.settle import record_settled, settle_hardware
from distill.training.strategy import make_fabric
from teachers.cache_plan import CachePlan

TOKENIZER_CAPTIONS = 20_000  # captions read to train the word tokenizer


@dataclass
class Built:
    """What a recipe became here: its configuration worked out, its processes started, data and models in place."""

    cfg: Config
    fabric: Fabric  # with its processes started
    source: Any
    assembly: Assembly
    kept: CachePlan | None  # of a teacher's targets, where they are kept on disk

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a global view."""
        trunk = next(iter(self.assembly.distiller.learners().values())).model.image
        return trunk.grid(self.cfg.views.global_size, self.cfg.views.global_size)

    def failures(self) -> Failures:
        """Where samples that cannot be used are counted."""
        return Failures(self.cfg.data.max_error_rate, getattr(self.source, "failures", ()))

    def loader(self, start_step: int, state: dict[str, Any] | None = None) -> Any:
        """This rank's batches from the 0-based `start_step` on; `state`: what a resumed loader must agree on."""
        return build_loader(
            self.source,
            self.cfg,
            self.assembly.tokenizer,
            grid=self.grid,
            start_step=start_step,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            state=state,
        )


def build_run(resolved: Resolved, resumed: Path | None = None) -> Built:
    """Builds all that a run needs; every process returns. `resumed`: the checkpoint that it will go on from.

    Raises UserError for anything a user can mend.
    """
    cfg = resolved.config
    settle_hardware(resolved)
    fabric = make_fabric(cfg)
    source = open_source(cfg.data)
    captions = caption_texts(source, caption_fields(cfg.captions), TOKENIZER_CAPTIONS)
    assembly = assemble(cfg, captions, resumed)
    record_settled(resolved)
    return Built(cfg, fabric, source, assembly, plan_targets(cfg, assembly.teacher, source))
