"""Evaluation of student and teacher while training, with the same code as `distill eval`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from torch import nn

from distill.config.schema import Config, EvalConfig
from distill.errors import UserError
from distill.evals.datasets import EvalDataset, open_dataset
from distill.evals.registry import find_task
from distill.evals.requests import parse_words
from distill.evals.results import TaskResult
from distill.evals.run import check_evaluation, evaluate
from distill.models.pair import ImageTextModel
from distill.models.sharding import is_sharded, whole
from distill.models.vision import VisionTower
from distill.training.assemble import Assembly
from distill.training.compiled import as_written
from distill.training.loop import TrainState
from teachers.cotrained import CotrainedTeacher
from teachers.ema import EmaTeacher
from teachers.frozen import FrozenTeacher

Tower = TypeVar("Tower", bound=nn.Module)


def live_evaluation(state: TrainState, folder: Path) -> dict[str, float]:
    """Runs `eval.tasks` on every student and on a teacher with a trunk of its own.

    Returns flat metrics `eval/NAME/TASK/METRIC` and writes the full results to `evals/step_N.json`; rank 0 computes.
    Raises UserError where a model cannot be evaluated, when the others have been and are written.
    """
    values: dict[str, float] = {}
    models = models_of(state)
    if state.fabric.is_global_zero:
        with as_written(state.cfg.train.compile):
            results = _evaluate_all(models, state.cfg.eval, folder / "evals", state.step)
        for name, tasks in results.items():
            for task, result in tasks.items():
                values |= {f"eval/{name}/{task}/{k}": v for k, v in result.metrics.items()}
    state.fabric.barrier()
    return values


def _evaluate_all(
    models: dict[str, ImageTextModel], cfg: EvalConfig, folder: Path, step: int
) -> dict[str, dict[str, TaskResult]]:
    """The results by model and task, written after each model."""
    results: dict[str, dict[str, TaskResult]] = {}
    refused: list[str] = []
    for name, model in models.items():
        try:
            results[name] = _evaluate(model, cfg)
        except UserError as error:
            refused.append(f"{name}: {error}")
            continue
        _write(results, folder, step)
    if refused:
        raise UserError(" ".join(refused))
    return results


def is_headline(name: str) -> bool:
    """Whether a metric of a run, `eval/NAME/TASK/METRIC`, is one that its task is known by."""
    kind, _, rest = name.partition("/")
    if kind != "eval":
        return False
    _, task, metric = rest.split("/", 2)
    return metric in find_task(task).headline


def check_live_evaluation(cfg: EvalConfig) -> dict[str, EvalDataset]:
    """Raises UserError for what `live_evaluation` would refuse of tasks and data; the models are not needed.

    Returns the datasets by their strings, for `check_live_models`.
    """
    opened = {}
    for dataset, group in _on_dataset(cfg, cfg.tasks).items():
        opened[dataset] = open_dataset(dataset, samples=8)
        check_evaluation(group, opened[dataset])
    return opened


def check_live_models(cfg: Config, fabric: Fabric, assembly: Assembly, opened: dict[str, EvalDataset]) -> None:
    """Raises UserError, on every rank, for what a model lacks that `live_evaluation` would ask it for.

    `opened`: what `check_live_evaluation` returned on rank 0, which alone need have the data. Nothing is spread yet.
    """
    problem: UserError | None = None
    if fabric.is_global_zero:
        models = models_of(assembly)
        if isinstance(assembly.teacher, FrozenTeacher) and cfg.teacher.shard and fabric.world_size > 1:
            del models["teacher"]  # will be sharded, and so left out
        try:
            for name, model in models.items():
                _check_model(name, model, cfg.eval, opened)
        except UserError as error:
            problem = error
    problem = fabric.broadcast(problem)
    if problem is not None:
        raise problem


def _check_model(name: str, model: Any, cfg: EvalConfig, opened: dict[str, EvalDataset]) -> None:
    for dataset, group in _on_dataset(cfg, _tasks_of(model, cfg)).items():
        try:
            check_evaluation(group, opened[dataset], model)
        except UserError as error:
            fix = "Set its options in eval.settings, or leave the task out of eval.tasks."
            raise UserError(f"eval.tasks, for {name}: {error} {fix}") from error


def _tasks_of(model: Any, cfg: EvalConfig) -> list[str]:
    """All tasks the model can do: one without a text tower is asked for no texts."""
    able = getattr(model, "encode_text", None) is not None
    return [task for task in cfg.tasks if able or not find_task(task).text]


def _evaluate(model: Any, cfg: EvalConfig) -> dict[str, TaskResult]:
    """By task, those on one dataset together."""
    tasks = _tasks_of(model, cfg)
    results: dict[str, TaskResult] = {}
    for dataset, group in _on_dataset(cfg, tasks).items():
        results |= evaluate(model, group, dataset, samples=cfg.samples)
    return {task: results[task] for task in tasks}


def _on_dataset(cfg: EvalConfig, tasks: Iterable[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Dataset -> task -> its options."""
    given = parse_words(cfg.settings, known=cfg.tasks)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task in tasks:
        options = dict(given.get(task, {}))
        found.setdefault(options.pop("dataset", cfg.dataset), {})[task] = options
    return found


def models_of(state: TrainState | Assembly) -> dict[str, ImageTextModel]:
    """Students and their spare averages (`NAME.ema`) by name, and `teacher` where its trunk is not a student's.

    Collective where weights are sharded. A frozen teacher that is sharded is left out.
    """
    found = {name: _whole_model(state.distiller.student(name).model) for name in state.distiller.students}
    found |= {f"{name}.ema": _whole_model(spare.model) for name, spare in state.spares.items()}
    teacher = state.teacher
    if isinstance(teacher, FrozenTeacher):
        if not is_sharded(next(teacher.model.image.parameters())):
            found["teacher"] = teacher.model
    elif isinstance(teacher, CotrainedTeacher):
        assert state.distiller.teacher_learner is not None
        found["teacher"] = _whole_model(state.distiller.teacher_learner.model)
    elif isinstance(teacher, EmaTeacher):
        # The text tower and tokenizer are the student's: only images are averaged.
        student = next(iter(found.values()))
        found["teacher"] = ImageTextModel(
            _whole(teacher.trunk, lambda: VisionTower.from_config(teacher.trunk.config())),
            student.text,
            student.tokenizer,
            student.temperature.item(),
            student.image_size,
        )
    return found


def _whole_model(model: ImageTextModel) -> ImageTextModel:
    return _whole(model, lambda: ImageTextModel.from_spec(model.spec()))


def _whole(module: Tower, build: Callable[[], Tower]) -> Tower:
    """`module` itself, or, where its weights are spread over ranks, a copy that holds them all (on every rank)."""
    device = next(module.parameters()).device
    if not any(map(is_sharded, module.parameters())):
        return module
    with torch.random.fork_rng(devices=[]):  # its random start is drawn for nothing and must not move training's state
        copy = build()
    copy.load_state_dict({name: whole(value) for name, value in module.state_dict().items()})
    copy.to(device).eval()
    return copy


def _write(results: dict[str, dict[str, Any]], folder: Path, step: int) -> None:
    plain = {name: {task: result.as_dict() for task, result in tasks.items()} for name, tasks in results.items()}
    path = folder / f"step_{step:08d}.json"
    try:
        folder.mkdir(exist_ok=True)
        path.write_text(json.dumps(plain, indent=2) + "\n")
    except OSError as error:
        fix = "Free some space, or mend the rights, and continue with --resume."
        raise UserError(f"Cannot write {path}: {error.strerror or error}. {fix}") from error
