"""The objective fingerprint: what a checkpoint was trained for, in a form that can be compared and read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from distill.config.schema import Config
from distill.errors import UserError

# Bumped when the meaning of a loss changes while its configuration does not.
LOSS_VERSION = 1
NAME = "teacher.name"
TRAINING = ("optim", "train")  # may change on the way: a longer run, other hardware
SECTIONS = ("objective", "mask", "teacher", "students", "heads", "captions", "views", "vision", "text")


def fingerprint(cfg: Config, teacher_hash: str | None) -> dict[str, Any]:
    """Everything that defines the objective, flat: dotted key -> value. `teacher_hash` identifies a frozen teacher."""
    flat: dict[str, Any] = {"loss_version": LOSS_VERSION, "teacher.sha256": teacher_hash}
    for section in SECTIONS:
        value = getattr(cfg, section)
        tree = [dataclasses.asdict(v) for v in value] if isinstance(value, list) else dataclasses.asdict(value)
        flat |= _flatten(section, tree)
    # a moved teacher is the same teacher: its hash counts, and which model of that run it is
    flat[NAME] = name_of(flat.pop("teacher.source"))
    flat.pop("teacher.shard")
    if cfg.train.accumulate == 1:  # one micro-batch is the whole batch
        flat["objective.contrastive.negatives"] = "global"
    elif flat["objective.contrastive.negatives"] == "micro":
        flat["objective.contrastive.negatives"] = f"micro, batch / {cfg.train.accumulate}"
    kept = ("path", "limit") if cfg.teacher.cache.path else ("path", "limit", "epochs", "dtype")
    for key in kept:  # where targets are kept is not what they are; without a cache nothing about it counts
        flat.pop(f"teacher.cache.{key}")
    return flat


def name_of(source: str | None) -> str | None:
    """The NAME of `run:PATH#NAME`, a model among those of one checkpoint; None without one."""
    return (source or "").partition("#")[2] or None


def digest(marks: dict[str, Any]) -> str:
    """A short name for a fingerprint, 12 hex digits."""
    return hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()[:12]


def refuse_other_objective(saved: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Raises UserError with a readable difference when a run would be resumed under another objective."""
    differences = [
        f"{key}: {saved.get(key)!r} in the checkpoint, {now.get(key)!r} now"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    if differences:
        raise UserError(
            f"{where} was trained under another objective ({digest(saved)}, now {digest(now)}): "
            + "; ".join(differences)
            + ". Resume with the original values, or start a new run with name=OTHER train.stage_from=THIS_RUN."
        )


def changed_settings(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Settings of training, none of the objective, that differ between two configurations: `optim.lr 0.001 -> 0.5`."""
    before, after = (
        {key: value for part in TRAINING for key, value in _flatten(part, tree[part]).items()} for tree in (then, now)
    )
    changed = [key for key in after if key in before and before[key] != after[key]]
    return ", ".join(f"{key} {before[key]} -> {after[key]}" for key in changed)


def _flatten(prefix: str, tree: Any) -> dict[str, Any]:
    if isinstance(tree, dict):
        items: Any = tree.items()
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    return {k: v for key, value in items for k, v in _flatten(f"{prefix}.{key}", value).items()}
