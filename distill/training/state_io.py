"""What a checkpoint holds, and how a run is put back exactly where it was."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from distill.data.failures import Failures
from distill.errors import UserError
from distill.models import shard_files
from distill.models.loading import read_checkpoint
from distill.objectives.distributed import all_gather_objects
from distill.training import checkpoint
from distill.training.assemble import Assembly
from distill.training.fingerprint import fingerprint, refuse_other_objective
from distill.training.learner import Learner
from distill.training.loop import TrainState
from distill.training.spare import Spare
from distill.training.strategy import scaler_of
from teachers.frozen import FrozenTeacher


def save(state: TrainState, assembly: Assembly, folder: Path) -> None:
    """Writes the checkpoint of this step with every rank's random state: rank 0 one file, or all ranks their shards."""
    plain, shards = shard_files.split(_content(state, assembly, _gather_rng(state.fabric), *lost_data(state)))
    if shards:
        checkpoint.save_shards(folder, state.step, plain, shards, state.cfg.train.keep, state.fabric)
    elif state.fabric.is_global_zero:
        checkpoint.save(folder, state.step, plain, state.cfg.train.keep)
    state.fabric.barrier()


def lost_data(state: TrainState) -> tuple[Failures, int]:
    """What all ranks lost of their data so far: samples that failed, and captions that were cut. Collective."""
    ranks = all_gather_objects((state.failures, state.cut))
    return Failures.together([failures for failures, _ in ranks]), sum(cut for _, cut in ranks)


def restore(state: TrainState, assembly: Assembly, folder: Path) -> None:
    """Puts `state` back to the newest checkpoint; stays at step 0 when there is none yet.

    A checkpoint of one file serves a run whose weights are spread over ranks, one of shards any other run.
    """
    found = checkpoint.existing(folder)
    if not found:
        return
    saved = read_checkpoint(found[-1], optimizers=True, like=_like(state, assembly))
    refuse_other_objective(saved["fingerprint"], _fingerprint(state, assembly), str(found[-1]))
    for name in state.distiller.students:
        _load_learner(state.distiller.student(name), saved["students"][name])
    for name, spare in state.spares.items():
        spare.restart(saved["students"][name]["ema"])
    if state.distiller.teacher_learner is not None:
        _load_learner(state.distiller.teacher_learner, saved["teacher_learner"])
    state.teacher.load(saved["teacher"]["state"])
    for name, optimizer in state.optimizers.items():
        optimizer.load_state_dict(saved["optimizers"][name])
    scaler = scaler_of(state.fabric)
    if scaler is not None:
        scaler.load_state_dict(saved["scaler"])
    state.step, state.seconds = saved["step"], saved["seconds"]
    state.data = saved["data"]
    state.guard.strikes = saved["guard"]
    if state.fabric.is_global_zero:  # they are of all ranks together, and will be added up again
        state.cut = saved["cut"]
        state.failures.load(saved["failures"])
    _set_rng(state.fabric, saved["rng"], found[-1])


def start_stage(assembly: Assembly, source: str) -> None:
    """Second stage: weights, heads, averages and centres of another run, by student name; fresh optimisers, step 0."""
    from distill.models.loading import find_checkpoint

    file = find_checkpoint(source)
    saved = read_checkpoint(file)
    for name in assembly.distiller.students:
        if name not in saved["students"]:
            raise UserError(
                f"train.stage_from={source} has no student '{name}'. It has: {', '.join(saved['students'])}. "
                f"Rename students.*.name to match."
            )
        try:
            _load_learner(assembly.distiller.student(name), saved["students"][name])
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise UserError(f"train.stage_from={source}: student '{name}' has other shapes: {reason}") from error
    for name, spare in assembly.spares.items():
        spare.restart(saved["students"][name].get("ema"))
    if saved["teacher"]["mode"] == assembly.teacher.mode and _same_teacher(saved, assembly):
        if assembly.distiller.teacher_learner is not None:
            _load_learner(assembly.distiller.teacher_learner, saved["teacher_learner"])
        assembly.teacher.load(saved["teacher"]["state"])
    else:  # an average that the first stage did not keep begins as the student it has now
        assembly.teacher.follow(0.0)


def _same_teacher(saved: dict[str, Any], assembly: Assembly) -> bool:
    """Whether what a run made for its frozen teacher's targets serves this one's: the same teacher and kind of heads.

    Where it does not, it is made anew. True in every other mode.
    """
    teacher = assembly.teacher
    if not isinstance(teacher, FrozenTeacher):
        return True
    assert assembly.opened is not None
    identity = (assembly.opened.sha256, assembly.opened.source if assembly.opened.sha256 is None else None)
    before = saved["teacher"]
    was = (before["sha256"], before["source"] if before["sha256"] is None else None)
    then, now = before["state"]["heads"], teacher.state()["heads"]
    shapes = [{name: value.shape for name, value in made.items()} for made in (then, now)]
    return was == identity and shapes[0] == shapes[1]


def _content(
    state: TrainState, assembly: Assembly, rng: list[dict[str, Any]], failures: Failures, cut: int
) -> dict[str, Any]:
    teacher_learner = state.distiller.teacher_learner
    scaler = scaler_of(state.fabric)
    return {
        "format": checkpoint.FORMAT,
        "version": 1,
        "step": state.step,
        "steps": state.cfg.train.steps,
        "config": asdict(state.cfg),
        "fingerprint": _fingerprint(state, assembly),
        "heads_config": asdict(state.cfg.heads),
        "students": {
            name: _learner_state(learner) | {"ema": _spare_state(state.spares.get(name))}
            for name, learner in state.distiller.students.items()
        },
        "teacher_learner": None if teacher_learner is None else _learner_state(teacher_learner),
        "teacher": {
            "mode": state.teacher.mode,
            "source": state.cfg.teacher.source,
            "sha256": assembly.opened.sha256 if assembly.opened else None,
            "state": state.teacher.state(),
        },
        "optimizers": {name: optimizer.state_dict() for name, optimizer in state.optimizers.items()},
        "scaler": None if scaler is None else scaler.state_dict(),
        "rng": rng,
        "guard": dict(state.guard.strikes),
        "failures": failures.state(),
        "cut": cut,
        "data": state.data,
        "seconds": state.seconds,
    }


def _like(state: TrainState, assembly: Assembly) -> shard_files.Like:
    """Which tensors of this run's checkpoint are spread over ranks, and how: as weights are now.

    An optimiser has no state before its first step; its averages will lie as their parameters do.
    """
    now = shard_files.places(_content(state, assembly, [], state.failures, state.cut))
    parameters = {n: [p for g in o.param_groups for p in g["params"]] for n, o in state.optimizers.items()}

    def like(place: str) -> Any:
        kind, *path = place.split("/")
        if kind == "optimizers" and path[1] == "state" and path[3] != "step":
            return parameters[path[0]][int(path[2])]
        return now.get(place)

    return like


def _fingerprint(state: TrainState, assembly: Assembly) -> dict[str, Any]:
    return fingerprint(state.cfg, assembly.opened.sha256 if assembly.opened else None)


def _learner_state(learner: Any) -> dict[str, Any]:
    bias = learner.logit_bias
    return {
        "spec": learner.model.spec(),
        "weights": learner.model.state_dict(),
        "heads": None if learner.heads is None else learner.heads.state_dict(),
        "logit_bias": None if bias is None else bias.detach(),
    }


def _spare_state(spare: Spare | None) -> dict[str, Any] | None:
    return None if spare is None else spare.model.state_dict()


def _load_learner(learner: Learner, saved: dict[str, Any]) -> None:
    learner.model.load_state_dict(saved["weights"])
    if learner.heads is not None and saved["heads"] is not None:
        learner.heads.load_state_dict(saved["heads"])
    if learner.logit_bias is not None and saved["logit_bias"] is not None:
        with torch.no_grad():
            learner.logit_bias.copy_(saved["logit_bias"])


def _gather_rng(fabric: Fabric) -> list[dict[str, Any]]:
    own: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if fabric.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(fabric.device)
    return all_gather_objects(own)


def _set_rng(fabric: Fabric, saved: list[dict[str, Any]], file: Path) -> None:
    """This rank's random state. With another number of ranks dropout draws differ; data order and views do not."""
    if len(saved) != fabric.world_size:
        return
    own = saved[fabric.global_rank]
    torch.set_rng_state(own["cpu"].cpu())
    if fabric.device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"].cpu(), fabric.device)
