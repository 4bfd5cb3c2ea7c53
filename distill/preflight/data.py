"""The data of a recipe, looked at without reading it all: which shards there are, and the first sample of one."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from distill.config.fields import MISSING
from distill.config.schema import Config
from distill.data.decoders import choose_decoder
from distill.data.sample import Sample, SampleError
from distill.data.shards import expand_shards, is_remote
from distill.data.stream import StreamSource, check_shards_vs_workers
from distill.errors import UserError, did_you_mean


@dataclass
class DataReport:
    """What is there (`lines`), and what is wrong with it (`problems`)."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def look_at_data(config: Config) -> DataReport:
    """Finds the shards, holds their number against loader processes, and reads one sample's captions and image."""
    report = DataReport()
    if config.data.source == "scenes":
        scenes = config.data.scenes
        report.lines.append(f"scenes: {scenes.count:,} images of {scenes.size} px, made as they are needed")
        report.lines.append(_epochs(config, scenes.count))
        return report
    pattern = config.data.shards
    if not pattern or pattern == MISSING:
        report.lines.append("shards: still to be given")
        return report
    try:
        shards = expand_shards(pattern)
    except UserError as error:
        report.problems.append(str(error))
        return report
    streamed = any(is_remote(shard) for shard in shards)
    _describe_shards(report, shards, config, streamed)
    try:
        check_shards_vs_workers(len(shards), config.data.workers, config.train.devices, indexed=not streamed)
    except UserError as error:
        report.problems.append(str(error))
    if streamed:
        report.lines.append("pipes and urls are not opened here")
    else:
        _look_inside(report, shards[0], config)
    return report


def _describe_shards(report: DataReport, shards: list[str], config: Config, streamed: bool) -> None:
    kind = "streamed in sequence" if streamed else "read by index"
    size = sum(Path(shard.removeprefix("file:")).stat().st_size for shard in shards if not is_remote(shard))
    text = f"{len(shards):,} shards, {kind}"
    report.lines.append(text if streamed else f"{text}, {size / 2**30:.2f} GiB; first {shards[0]}")
    processes = max(config.data.workers, 1) * config.train.devices
    report.lines.append(
        f"{processes:,} loader processes ({config.data.workers} workers x {config.train.devices} ranks)"
    )
    try:
        report.lines.append(f"JPEGs decoded by {choose_decoder(config.data.decoder)}")
    except UserError as error:
        report.problems.append(str(error))
    if config.data.epoch:
        report.lines.append(_epochs(config, config.data.epoch))


def _epochs(config: Config, samples: int) -> str:
    train = config.train
    seen = train.steps * train.batch
    return f"{train.steps:,} steps of {train.batch:,} = {seen:,} images = {seen / samples:.1f} epochs"


def _look_inside(report: DataReport, shard: str, config: Config) -> None:
    first = next(iter(StreamSource([shard], 1).records(shard)), None)
    if not isinstance(first, Sample):
        reason = first.reason if isinstance(first, SampleError) else "it is empty"
        report.problems.append(f"data.shards: no sample can be read from {shard}: {reason}")
        return
    try:
        with Image.open(io.BytesIO(first.image)) as image:  # type: ignore[arg-type]
            shape = f"{image.format} {image.width} x {image.height}"
    except (UnidentifiedImageError, OSError) as error:
        report.problems.append(f"data.shards: the image of {first.key} in {shard} cannot be read: {error}")
        return
    fields = ", ".join(f"{name} ({len(texts)})" for name, texts in first.captions.items()) or "none"
    report.lines.append(f"first sample {first.key}: {shape}, caption fields {fields}")
    _check_fields(report, first, config)


def _check_fields(report: DataReport, sample: Sample, config: Config) -> None:
    if config.objective.contrastive.weight == 0:
        return
    captions = config.captions
    for key, names in (("captions.cls1", captions.cls1), ("captions.cls2", captions.cls2)):
        for name in names:
            if name in sample.captions or captions.fallback in sample.captions:
                continue
            has = ", ".join(sample.captions) or "no captions"
            near = did_you_mean(name, sample.captions)
            fix = "list fields that are there, or set captions.fallback"
            report.problems.append(
                f"{key}: {sample.shard}: {sample.key} has no field '{name}'.{near} It has {has}; {fix}"
            )
