"""Rules on `teacher.cache`."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config.finding import Finding, is_set
from distill.config.schema import Config

KEY = "teacher.cache.path"


def kept_targets(config: Config) -> Iterator[Finding]:
    if config.teacher.cache.path is None:
        for name in ("epochs", "dtype", "limit"):
            key = f"teacher.cache.{name}"
            if is_set(config, key):
                yield Finding((key, KEY), f"{key}: not used, as {KEY} is null", warning=True)
        return
    if config.teacher.mode != "frozen":
        fix = "other teachers change while they teach; set teacher.mode=frozen or teacher.cache.path=null"
        yield Finding((KEY, "teacher.mode"), f"{KEY}: only used with teacher.mode frozen; {fix}")
    elif not (config.objective.patch.weight or config.objective.cls.weight):
        text = f"{KEY}: there are no targets to keep, as the patch and cls weights are 0; set {KEY}=null"
        yield Finding((KEY, "objective.patch.weight", "objective.cls.weight"), text)
    streamed = [p for p in (config.data.shards or "").split("::") if p.startswith(("pipe:", "http://", "https://"))]
    if streamed:
        fix = "copy the shards here, or set teacher.cache.path=null"
        text = f"{KEY}: '{streamed[0]}' is a stream, which gives other samples in every pass; {fix}"
        yield Finding((KEY, "data.shards"), text)


RULES = (kept_targets,)
