"""The data of a recipe, looked at without reading it all: which shards there are, and the first samples of some."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from distill.config.fields import MISSING
from distill.config.schema import Config
from distill.data.captions import CaptionPicker
from distill.data.decoders import choose_decoder
from distill.data.sample import SampleError, printable
from distill.data.shards import ShardSource, expand_shards, is_remote
from distill.data.sources import spread
from distill.data.stream import check_shards_vs_workers
from distill.errors import UserError, did_you_mean

SHARDS, RECORDS = 8, 256  # how many shards are looked into, spread over all, and how many of their records in all
Found = dict[int, dict[str, list[str]]]  # the caption fields of samples, by index


@dataclass
class DataReport:
    """What is there (`lines`), and what is wrong with it (`problems`)."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def look_at_data(config: Config) -> DataReport:
    """Finds the shards, holds their number against loader processes, and reads some samples' captions and one image."""
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
        _look_inside(report, [shards[number] for number in spread(len(shards), SHARDS)], config)
    return report


def _describe_shards(report: DataReport, shards: list[str], config: Config, streamed: bool) -> None:
    kind = "streamed in sequence" if streamed else "read by index"
    size = sum(Path(shard.removeprefix("file:")).stat().st_size for shard in shards if not is_remote(shard))
    text = f"{len(shards):,} shards, {kind}"
    report.lines.append(text if streamed else f"{text}, {size / 2**30:.2f} GiB; first {shards[0]}")
    processes = max(config.data.workers, 1) * config.train.devices
    report.lines.append(
        f"loader processes: {processes:,} ({config.data.workers} workers x {config.train.devices} ranks)"
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


def _look_inside(report: DataReport, shards: list[str], config: Config) -> None:
    try:
        source = ShardSource(shards, first=RECORDS // len(shards))
    except UserError as error:
        report.problems.append(f"data.shards: no sample can be read: {error}")
        return
    report.lines += [f"left out: {failure}" for failure in source.failures if failure.key == "-"]
    left_out = [failure for failure in source.failures if failure.key != "-"]
    if left_out:
        report.lines.append(f"{len(left_out)} records looked at are left out, first {left_out[0]}")
    found, bad = _captions(source)
    if bad:
        text = f"{len(bad)} of {len(source)} samples looked at cannot be read, first {bad[0]}"
        stops = len(bad) > config.data.max_error_rate * len(source)
        (report.problems if stops else report.lines).append(f"data.shards: {text}" if stops else text)
    if found:
        _describe_sample(report, source, next(iter(found)))
        if config.objective.contrastive.weight != 0:
            _check_fields(report, source, found, config)


def _captions(source: ShardSource) -> tuple[Found, list[SampleError]]:
    """The caption fields of all samples by index, and the samples that have unreadable ones."""
    found: Found = {}
    bad: list[SampleError] = []
    for index in range(len(source)):
        try:
            found[index] = source.captions(index)
        except SampleError as error:
            bad.append(error)
    return found, bad


def _describe_sample(report: DataReport, source: ShardSource, index: int) -> None:
    sample = source[index]
    try:
        with Image.open(io.BytesIO(sample.image)) as image:  # type: ignore[arg-type]
            shape = f"{image.format} {image.width} x {image.height}"
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        failure = SampleError(sample.shard, sample.key, f"the image cannot be read ({error})")
        report.problems.append(f"data.shards: {failure}")
        return
    fields = ", ".join(f"{name} ({len(texts)})" for name, texts in sample.captions.items()) or "none"
    report.lines.append(f"first sample {printable(sample.key)}: {shape}, caption fields {fields}")


def _check_fields(report: DataReport, source: ShardSource, found: Found, config: Config) -> None:
    """Says which wanted fields samples lack: a problem where that would stop the run, else a line."""
    captions = config.captions
    picker = CaptionPicker(captions)
    some: list[str] = []
    nowhere: list[str] = []
    for key, names in (("captions.cls1", captions.cls1), ("captions.cls2", captions.cls2)):
        for name in names:
            lacking = [index for index, there in found.items() if not any(map(str.strip, picker.texts(there, name)))]
            if len(lacking) == len(found):
                nowhere.append(f"{key}: {_lacks(source, lacking[0], found, name)}")
            elif lacking:
                shard, sample = source.name(lacking[0])
                lack = f"{len(lacking)} of {len(found)} samples looked at have no field '{name}'"
                some.append(f"{key}: {lack} (first {sample} in {shard})")
            if len(lacking) < len(found) and not any(name in there for there in found.values()):
                report.lines.append(f"{key}: {_replaced(found, name, captions.fallback)}")
    lost, allowed = 1 - sum(map(picker.chance, found.values())) / len(found), config.data.max_error_rate
    if nowhere or lost <= allowed:
        report.problems += nowhere
        report.lines += [f"{text}; where it is drawn, they are skipped" for text in some]
        return
    report.problems.append(
        f"captions: about {lost:.1%} of samples would be skipped, data.max_error_rate is {allowed:.1%}. "
        f"{'; '.join(some) or 'Texts are empty'}. Set captions.fallback to a field that every sample has, or raise "
        "data.max_error_rate"
    )


def _replaced(found: Found, name: str, fallback: str | None) -> str:
    near = did_you_mean(name, set().union(*found.values()))
    return f"no sample looked at has a field '{name}', captions.fallback={fallback} stands for it.{near}".rstrip(".")


def _lacks(source: ShardSource, index: int, found: Found, name: str) -> str:
    shard, sample = source.name(index)
    has, near = ", ".join(found[index]) or "no captions", did_you_mean(name, found[index])
    fix = "list fields that are there, or set captions.fallback"
    return f"{shard}: {sample} has no field '{name}'.{near} It has {has}; {fix}"
