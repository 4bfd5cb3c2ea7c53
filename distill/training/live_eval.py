"""Evaluation of student and teacher while training, with the same code as `distill eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill.config.schema import EvalConfig
from distill.evals.registry import find_task
from distill.evals.requests import parse_words
from distill.evals.results import TaskResult
from distill.evals.run import evaluate
from distill.models.pair import ImageTextModel
from distill.training.loop import TrainState
from teachers.cotrained import CotrainedTeacher
from teachers.ema import EmaTeacher
from teachers.frozen import FrozenTeacher


def live_evaluation(state: TrainState, folder: Path) -> dict[str, float]:
    """Runs `eval.tasks` on every student and on a teacher with a trunk of its own.

    Returns flat metrics `eval/NAME/TASK/METRIC` and writes the full results to `evals/step_N.json`; rank 0 computes.
    """
    values: dict[str, float] = {}
    if state.fabric.is_global_zero:
        cfg = state.cfg.eval
        results = {name: _evaluate(model, cfg) for name, model in models_of(state).items()}
        for name, tasks in results.items():
            for task, result in tasks.items():
                values |= {f"eval/{name}/{task}/{k}": v for k, v in result.metrics.items()}
        _write(results, folder / "evals", state.step)
    state.fabric.barrier()
    return values


def _evaluate(model: Any, cfg: EvalConfig) -> dict[str, TaskResult]:
    """All tasks the model can do, those on one dataset together. A model without a text tower is asked for no texts."""
    given = parse_words(cfg.settings, known=cfg.tasks)
    able = getattr(model, "encode_text", None) is not None
    tasks = [task for task in cfg.tasks if able or not find_task(task).text]
    on_dataset: dict[str, dict[str, dict[str, Any]]] = {}
    for task in tasks:
        options = dict(given.get(task, {}))
        on_dataset.setdefault(options.pop("dataset", cfg.dataset), {})[task] = options
    results: dict[str, TaskResult] = {}
    for dataset, group in on_dataset.items():
        results |= evaluate(model, group, dataset, samples=cfg.samples)
    return {task: results[task] for task in tasks}


def models_of(state: TrainState) -> dict[str, ImageTextModel]:
    """Students and their spare averages (`NAME.ema`) by name, and `teacher` where its trunk is not a student's."""
    found = {name: state.distiller.student(name).model for name in state.distiller.students}
    found |= {f"{name}.ema": spare.model for name, spare in state.spares.items()}
    teacher = state.teacher
    if isinstance(teacher, FrozenTeacher):
        found["teacher"] = teacher.model
    elif isinstance(teacher, CotrainedTeacher):
        assert state.distiller.teacher_learner is not None
        found["teacher"] = state.distiller.teacher_learner.model
    elif isinstance(teacher, EmaTeacher):
        # The text tower and tokenizer are the student's: only images are averaged.
        student = next(iter(found.values()))
        found["teacher"] = ImageTextModel(
            teacher.trunk, student.text, student.tokenizer, float(student.temperature), student.image_size
        )
    return found


def _write(results: dict[str, dict[str, Any]], folder: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    plain = {name: {task: result.as_dict() for task, result in tasks.items()} for name, tasks in results.items()}
    (folder / f"step_{step:08d}.json").write_text(json.dumps(plain, indent=2) + "\n")
