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
from distill.training.fingerprint import NAME, changed_settings, fingerprint, name_of, refuse_other_objective
from distill.training.learner_io import learner_state, load_learner
from distill.training.loop import TrainState
from distill.training.optim import load_optimizer
from distill.training.spare import Spare
from distill.training.strategy import scaler_of


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


def restore(state: TrainState, assembly: Assembly, file: Path) -> str:
    """Puts `state` back to a checkpoint of its run; returns which settings of training differ, in words.

    A checkpoint of one file serves a run whose weights are spread over ranks, one of shards any other run. Raises
    UserError for a damaged one, or one of another objective.
    """
    saved = read_checkpoint(file, optimizers=True, like=_like(state, assembly))
    saved["fingerprint"].setdefault(NAME, name_of(saved["teacher"]["source"]))
    refuse_other_objective(saved["fingerprint"], _fingerprint(state, assembly), str(file))
    optimizer = saved["config"]["optim"]["name"]
    if optimizer != state.cfg.optim.name:
        raise UserError(
            f"{file} has the state of optim.name={optimizer}, which {state.cfg.optim.name} cannot go on with. Resume "
            f"with optim.name={optimizer}, or start a new run with name=OTHER train.stage_from=THIS_RUN."
        )
    for name in state.distiller.students:
        load_learner(state.distiller.student(name), saved["students"][name], f"{file}: student '{name}'")
    for name, spare in state.spares.items():
        spare.restart(saved["students"][name]["ema"])
    if state.distiller.teacher_learner is not None:
        load_learner(state.distiller.teacher_learner, saved["teacher_learner"], f"{file}: the co-trained teacher")
    state.teacher.load(saved["teacher"]["state"])
    for name, optimizer in state.optimizers.items():
        load_optimizer(optimizer, saved["optimizers"][name], saved["config"]["optim"]["layer_decay"], str(file))
    scaler = scaler_of(state.fabric)
    if scaler is not None and saved["scaler"] is not None:  # none: it was trained in another precision
        scaler.load_state_dict(saved["scaler"])
    state.step, state.seconds = saved["step"], saved["seconds"]
    state.data = saved["data"]
    state.guard.strikes = saved["guard"]
    if state.fabric.is_global_zero:  # they are of all ranks together, and will be added up again
        state.cut = saved["cut"]
        state.failures.load(saved["failures"])
    _set_rng(state, saved["rng"])
    return changed_settings(saved["config"], asdict(state.cfg))


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
            name: learner_state(state.distiller.student(name)) | {"ema": _spare_state(state.spares.get(name))}
            for name in state.distiller.students
        },
        "teacher_learner": None if teacher_learner is None else learner_state(teacher_learner),
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
            own, number = parameters.get(path[0], []), int(path[2])
            return own[number] if number < len(own) else None  # another model: it is refused when all is read
        return now.get(place)

    return like


def _fingerprint(state: TrainState, assembly: Assembly) -> dict[str, Any]:
    return fingerprint(state.cfg, assembly.opened.sha256 if assembly.opened else None)


def _spare_state(spare: Spare | None) -> dict[str, Any] | None:
    return None if spare is None else spare.model.state_dict()


def _gather_rng(fabric: Fabric) -> list[dict[str, Any]]:
    own: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if fabric.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(fabric.device)
    return all_gather_objects(own)


def _set_rng(state: TrainState, saved: list[dict[str, Any]]) -> None:
    """This rank's random state. With another number of ranks dropout draws differ; data order and views do not."""
    fabric = state.fabric
    if len(saved) != fabric.world_size:
        seed_rank(state.cfg.seed, fabric.global_rank, state.step)
        return
    own = saved[fabric.global_rank]
    torch.set_rng_state(own["cpu"].cpu())
    if fabric.device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"].cpu(), fabric.device)


def seed_rank(seed: int, rank: int, step: int) -> None:
    """Seeds what is drawn while training, dropout and drop path, apart for every rank and for where it goes on."""
    torch.manual_seed(seed + 7919 * (rank + 1) + 104_729 * step)
