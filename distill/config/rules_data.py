"""Rules on data, captions, views and mask."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config.finding import Finding, is_set
from distill.config.schema import Config
from distill.errors import did_you_mean
from distill.views.masks import masked_count
from students import parse_arch

SCENE_FIELDS = ("web", "synthetic", "detailed")


def shards(config: Config) -> Iterator[Finding]:
    data, keys = config.data, ("data.shards", "data.source")
    if data.source == "shards" and not data.shards:
        yield Finding(keys, "data.shards: not given, but data.source is shards; give tars, as 'photos/{000..099}.tar'")
    if data.source != "shards" and data.shards:
        fix = "set data.source=shards or data.shards=null"
        yield Finding(keys, f"data.shards: given, but data.source is {data.source}, which does not read it; {fix}")
    streamed = [part for part in (data.shards or "").split("::") if part.startswith(("pipe:", "http://", "https://"))]
    if data.source == "shards" and streamed and data.epoch is None:
        text = f"data.epoch: not given, but '{streamed[0]}' is a stream, whose length is unknown"
        yield Finding(("data.epoch", *keys), f"{text}; give the samples in an epoch, as data.epoch=1000000")


def captions(config: Config) -> Iterator[Finding]:
    chosen = config.captions
    if not chosen.cls1:
        fix = "name at least one caption field, as captions.cls1=[web]; for a one-CLS model empty captions.cls2"
        yield Finding(("captions.cls1",), f"captions.cls1: empty; {fix}")
    for key, fields in (("captions.cls1", chosen.cls1), ("captions.cls2", chosen.cls2)):
        for name in sorted({name for name in fields if fields.count(name) > 1}):
            yield Finding((key,), f"{key}: '{name}' is listed twice; each field is drawn with the same chance")
        for name in fields:
            if not name.strip():
                yield Finding((key,), f"{key}: an empty field name; fields are keys of each sample's json")
            elif config.data.source == "scenes" and name not in SCENE_FIELDS and chosen.fallback not in SCENE_FIELDS:
                near = f"{did_you_mean(name, SCENE_FIELDS)} Allowed: {', '.join(SCENE_FIELDS)}"
                yield Finding((key, "data.source"), f"{key}: scenes have no caption field '{name}'.{near}")
    if config.data.source == "scenes" and chosen.fallback is not None and chosen.fallback not in SCENE_FIELDS:
        near = f"{did_you_mean(chosen.fallback, SCENE_FIELDS)} Allowed: {', '.join(SCENE_FIELDS)}, null"
        text = f"captions.fallback: scenes have no caption field '{chosen.fallback}'.{near}"
        yield Finding(("captions.fallback", "data.source"), text)


def crops(config: Config) -> Iterator[Finding]:
    views = config.views
    for key, scale in (("views.global_scale", views.global_scale), ("views.local_scale", views.local_scale)):
        if len(scale) != 2 or scale[0] > scale[1]:
            yield Finding((key,), f"{key}: {scale} must be [smallest, largest] share of the image's area")
    if views.locals == 0 and config.objective.cls.weight > 0:
        text = "views.locals: 0, but the CLS loss compares local crops to the global one"
        fix = "set views.locals=6 or objective.cls.weight=0"
        yield Finding(("views.locals", "objective.cls.weight"), f"{text}; {fix}")
    if views.locals > 0 and config.objective.cls.weight == 0:
        text = f"views.locals: {views.locals} crops are made but not used, as objective.cls.weight is 0"
        yield Finding(("views.locals", "objective.cls.weight"), f"{text}; set views.locals=0", warning=True)
    if views.locals > 0 and views.local_size > views.global_size:
        text = f"views.local_size: {views.local_size} is larger than views.global_size ({views.global_size})"
        yield Finding(("views.local_size", "views.global_size"), text + "; local crops are the small ones")
    side = config.data.scenes.size
    if config.data.source == "scenes" and side < views.global_size:
        text = f"data.scenes.size: scenes of {side} px are enlarged to views.global_size ({views.global_size})"
        yield Finding(("data.scenes.size", "views.global_size"), text, warning=True)


def multiples(config: Config) -> Iterator[Finding]:
    """Crops must be whole numbers of every tower's patches."""
    towers = [(f"students.{i}.arch", f"student '{s.name}'", s.arch) for i, s in enumerate(config.students)]
    if config.teacher.mode == "cotrained" and config.teacher.arch:
        towers.append(("teacher.arch", "the teacher", config.teacher.arch))
    patches = []
    for key, who, arch in towers:
        try:
            patches.append((key, who, parse_arch(arch).patch))
        except ValueError:
            continue  # reported by its own rule
    sizes = [("views.global_size", config.views.global_size)]
    if config.views.locals > 0:
        sizes.append(("views.local_size", config.views.local_size))
    for key, size in sizes:
        wrong = [(arch_key, who, patch) for arch_key, who, patch in patches if size % patch]
        if wrong:
            unit = _common_multiple([patch for _, _, patch in patches])
            near = [n for n in (size // unit * unit, size // unit * unit + unit) if n > 0]
            who = " and ".join(f"the patch of {who} ({patch})" for _, who, patch in wrong)
            text = f"{key}: {size} is not a multiple of {who}; nearest that fit: {', '.join(map(str, near))}"
            yield Finding((key, *(arch_key for arch_key, _, _ in wrong)), text)


def one_grid(config: Config) -> Iterator[Finding]:
    """Everything that sees the corrupted view shares one mask, so one patch size."""
    towers = [(f"students.{i}.arch", f"student '{s.name}'", s.arch) for i, s in enumerate(config.students)]
    if config.teacher.mode == "cotrained" and config.teacher.arch:
        towers.append(("teacher.arch", "the teacher", config.teacher.arch))
    try:
        patches = [parse_arch(arch).patch for _, _, arch in towers]
    except ValueError:
        return  # reported by its own rule
    for (key, who, _), patch in zip(towers, patches):
        if patch != patches[0]:
            text = f"{key}: the patch of {who} is {patch}, but that of {towers[0][1]} is {patches[0]}"
            yield Finding((key, towers[0][0]), f"{text}; all share one mask, so give them the same patch")


def _common_multiple(numbers: list[int]) -> int:
    product = 1
    for number in set(numbers):
        a, b = product, number
        while b:
            a, b = b, a % b
        product = product * number // a
    return product


def mask(config: Config) -> Iterator[Finding]:
    """The supervised tokens must exist."""
    wanted = []
    if config.objective.patch.weight > 0:
        wanted.append(("objective.patch.tokens", config.objective.patch.tokens))
        if config.teacher.mode == "cotrained":
            wanted.append(("teacher.tokens", config.teacher.tokens))
    ratio, size = config.mask.ratio, config.views.global_size
    if ratio == 0 and is_set(config, "mask.kind"):
        yield Finding(("mask.kind", "mask.ratio"), "mask.kind: not used, as mask.ratio is 0", warning=True)
    for i, student in enumerate(config.students):
        try:
            patch = parse_arch(student.arch).patch
        except ValueError:
            continue
        count = (size // patch) ** 2
        masked = masked_count(count, ratio)
        for key, tokens in wanted:
            if tokens == "masked" and masked == 0:
                fix = f"raise mask.ratio (paper: 0.75) or set {key}=all"
                text = f"mask.ratio: {ratio:g} masks none of {count} patches, but {key} is masked"
                yield Finding(("mask.ratio", key, "views.global_size", f"students.{i}.arch"), f"{text}; {fix}")
        return  # the first student's grid is enough to say it once


RULES = (shards, captions, crops, multiples, one_grid, mask)
