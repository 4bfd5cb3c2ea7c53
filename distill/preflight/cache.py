"""The cache of a frozen teacher's targets, estimated from the recipe alone."""

from __future__ import annotations

from distill.config.fields import MISSING
from distill.config.schema import Config
from distill.data.sources import open_source
from distill.data.stream import StreamSource
from distill.errors import UserError
from distill.models.sources import describe
from students import parse_arch
from teachers.cache_plan import CachePlan, plan_cache
from teachers.heads.own import check_heads
from teachers.sources import teacher_heads


def expected_cache(config: Config) -> CachePlan | str | None:
    """The plan, None without a cache, or a line that says what must be given before the size is known."""
    teacher, source = config.teacher, config.teacher.source
    if teacher.cache.path is None:
        return None
    if source is None or MISSING in (source, config.data.shards):
        return f"kept at {teacher.cache.path}; the size is known when teacher.source and data.shards are given"
    try:
        widths = _widths(config, source)
        opened = None if config.data.epoch else open_source(config.data)
    except UserError as error:  # reported where the teacher and the data are looked at
        return f"the size is not known: {error}"
    assert not isinstance(opened, StreamSource), "refused by a rule"
    samples = config.data.epoch if opened is None else len(opened)
    assert samples is not None
    return plan_cache(config, samples, config.views.global_size // parse_arch(config.students[0].arch).patch, widths)


def _widths(config: Config, source: str) -> tuple[int | None, int | None]:
    """Channels kept of CLS and of a patch; as `TargetHeads.embedded_widths` of the teacher that a run opens."""
    objective, own, features = config.objective, teacher_heads(source), describe(source).features
    kind = check_heads(config, source, own)
    sizes = own.sizes if kind == "own" and own else config.heads
    bottleneck = features if kind == "fitted" else sizes.bottleneck  # fitted prototypes lie among the features
    parts = (objective.cls, objective.patch)
    cls, patch = ((features if p.target == "features" else bottleneck) if p.weight > 0 else None for p in parts)
    return cls, patch
