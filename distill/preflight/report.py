"""Everything `distill check` finds out about a recipe that is valid."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.config.fields import MISSING, leaf_of
from distill.config.resolved import Resolved
from distill.config.schema import Config
from distill.errors import UserError
from distill.preflight.cache import expected_cache
from distill.preflight.cost import REFERENCE_FLOPS, Cost, step_cost
from distill.preflight.counts import Counts, count_models, count_sketch
from distill.preflight.data import DataReport, look_at_data
from distill.preflight.sketch import Sketch, sketch_models
from distill.preflight.starts import look_at_starts
from distill.training.live_eval import check_live_evaluation
from distill.training.precision import choose_precision, on_cpu
from distill.training.receipts import head_only_saving, saving_table
from distill.views.masks import masked_count
from students import parse_arch
from teachers.cache_plan import CachePlan


@dataclass
class Report:
    """The result of a check. `counts` and `cost` are None when a file they need is missing (then a problem says so)."""

    recipe: str
    name: str
    supply: dict[str, str]  # key -> what it is, for values the recipe leaves to the user
    warnings: list[str]
    differences: list[str]
    data: DataReport
    precision: str
    counts: Counts | None = None
    cost: Cost | None = None  # with `train.accelerator=auto` that of a GPU
    cpu_memory: float | None = None  # bytes a step takes here, where `auto` means the CPU
    grids: list[str] = field(default_factory=list)
    kept: str | None = None  # the cache of a frozen teacher's targets, and its size
    problems: list[str] = field(default_factory=list)
    saving: float | None = None  # share of parameters that averaging the heads alone saves over averaging all
    savings: list[tuple[str, int, float]] = field(default_factory=list)  # the same trunk with other heads
    device_days: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def preflight(resolved: Resolved) -> Report:
    """Works out models, grids, data and cost of a valid recipe; what is wrong goes into `.problems`."""
    config = resolved.config
    report = Report(
        recipe=resolved.path,
        name=config.name,
        supply={key: leaf_of(key).help for key in resolved.missing},
        warnings=list(resolved.warnings),
        differences=[str(difference) for difference in resolved.differences()],
        data=look_at_data(config),
        precision=choose_precision(config.train),
    )
    report.problems += report.data.problems
    if config.eval.dataset != MISSING:
        try:
            check_live_evaluation(config.eval)
        except UserError as error:
            report.problems.append(f"eval: {error}")
    sketch = _sketch(config, report)
    if sketch is None:
        return report
    report.counts = count_sketch(config, sketch)
    report.cost = step_cost(config, report.counts, report.precision)
    if config.train.accelerator == "auto" and config.train.devices == 1 and on_cpu(config.train):
        here = replace(config, train=replace(config.train, accelerator="cpu"))
        report.cpu_memory = step_cost(here, count_models(here), report.precision).total_memory
    report.grids = grid_plan(config, report.counts)
    _add_cache(report, config)
    report.device_days = report.cost.flops * config.train.steps / REFERENCE_FLOPS / 86400
    if config.teacher.mode == "ema_head" and report.counts.averaged:
        first = report.counts.models[0]
        report.saving = head_only_saving(first.image, first.heads)
        report.savings = saving_table(first.image, parse_arch(config.students[0].arch).width)
    return report


def _add_cache(report: Report, config: Config) -> None:
    expected = expected_cache(config)
    if isinstance(expected, CachePlan):
        report.kept = expected.line()
        report.problems += [problem] if (problem := expected.problem()) is not None else []
    else:
        report.kept = expected


def grid_plan(config: Config, counts: Counts) -> list[str]:
    """For each model, its tokens per view and how teacher tokens meet student tokens."""
    views, lines = config.views, []
    distils = config.objective.cls.weight + config.objective.patch.weight
    for model in counts.models:
        side = views.global_size // model.arch.patch
        line = f"{model.name}: global {views.global_size} px = {side} x {side} patches"
        if model.role == "teacher (frozen)":
            assert counts.meeting is not None
            lines.append(f"{model.name}: {counts.meeting.line()}")
            continue
        masked = masked_count(side * side, config.mask.ratio)
        if config.objective.patch.weight:
            line += f", {masked} masked, {side * side - masked} visible, supervised: {_supervised(config, model.role)}"
        if distils and config.objective.cls.weight and views.locals:
            local = views.local_size // model.arch.patch
            line += f"; {views.locals} locals {views.local_size} px = {local} x {local}"
        lines.append(line)
    return lines


def _supervised(config: Config, role: str) -> str:
    return config.teacher.tokens if role.startswith("teacher") else config.objective.patch.tokens


def _sketch(config: Config, report: Report) -> Sketch | None:
    """The models; None when they cannot be made. What is wrong with them, or with what they start from, is noted."""
    sketch = problem = None
    try:
        sketch = sketch_models(config)
    except UserError as error:
        problem = str(error)
    warnings, problems = look_at_starts(config, sketch)
    report.warnings += warnings
    report.problems += problems
    tokenizer = config.text.tokenizer
    if tokenizer.endswith(".model") and not Path(tokenizer).expanduser().is_file():
        report.problems.append(
            f"text.tokenizer: no file {tokenizer}; give the path of a SentencePiece .model, or clip or words"
        )
    report.problems += [problem] if problem is not None else []
    return sketch
