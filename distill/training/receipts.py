"""Receipts: how many parameters are trained, averaged and frozen, and which tensors teacher and student share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from distill.config.schema import HeadsConfig
from distill.training.distiller import Distiller
from distill.training.spare import Spare
from teachers.average import shared_tensors
from teachers.base import Teacher


@dataclass
class Receipts:
    """Parameter counts of a run. `shared` names the student tensors that are also the teacher's, by student."""

    trained: int
    averaged: int
    frozen: int
    by_part: dict[str, dict[str, int]]
    shared: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def count(module: nn.Module | None, trained: bool | None = None) -> int:
    """Number of parameters, each tensor once; `trained` keeps only those with (True) or without (False) gradient."""
    if module is None:
        return 0
    return sum(p.numel() for p in module.parameters() if trained is None or p.requires_grad == trained)


def receipts(distiller: Distiller, teacher: Teacher, spares: Mapping[str, Spare] | None = None) -> Receipts:
    """Counts a built run and checks that teacher and student share exactly what the mode says."""
    spares = spares or {}
    averaged = (
        sum(count(m) for m in teacher.modules().values()) if teacher.mode in ("ema", "ema_head", "cotrained") else 0
    )
    outside = sum(count(m) for m in teacher.modules().values()) if teacher.mode == "frozen" else 0
    parts = {
        name: {
            "image": count(learner.model.image),
            "text": count(learner.model.text),
            "heads": count(learner.heads),
            "trained": count(learner, True),
            "spare": count(spares[name].model) if name in spares else 0,
        }
        for name, learner in distiller.learners().items()
    }
    averaged += sum(p["spare"] for p in parts.values())
    trained = sum(p["trained"] for p in parts.values())
    frozen = outside + sum(count(learner, False) for learner in distiller.learners().values())
    return Receipts(trained, averaged, frozen, parts, _shared(distiller, teacher))


def _shared(distiller: Distiller, teacher: Teacher) -> dict[str, str]:
    """What each learner shares with the teacher; raises AssertionError on sharing that the mode does not intend."""
    found = {}
    for name, learner in distiller.learners().items():
        held = [n for module in teacher.modules().values() for n in shared_tensors(learner, module)]
        if teacher.mode == "none":
            assert all(n.startswith("heads.") for n in held), f"unintended sharing: {held[:5]}"
        else:
            assert not held, f"teacher ({teacher.mode}) and {name} share tensors: {held[:5]}"
        source = getattr(teacher, "learner", None)
        if teacher.mode == "ema_head" or source is learner:
            found[name] = "image trunk (whole); heads averaged apart"
        elif teacher.mode == "none":
            found[name] = "image trunk and heads (whole)"
        else:
            found[name] = "nothing"
    return found


def head_parameters(width: int, cfg: HeadsConfig) -> int:
    """Parameters of all prototype heads of a trunk of `width`: MLP with biases, then `prototypes x bottleneck`."""
    sizes = [width] + [cfg.hidden] * (cfg.layers - 1) + [cfg.bottleneck]
    mlp = sum(a * b + b for a, b in zip(sizes, sizes[1:]))
    return (mlp + cfg.prototypes * cfg.bottleneck) * (1 if cfg.tied else 2)


def head_only_saving(trunk: int, heads: int) -> float:
    """Share of training parameters (student + averaged copies, without text) that head-only EMA saves over full EMA.

    Full EMA holds trunk and heads twice, head-only EMA the heads alone: saving = V / (2 V + 2 H). TIPSv2 gives 42 % on
    ViT-B and does not say how it counts (section 3.4): this is our reading.
    """
    return trunk / (2 * trunk + 2 * heads)


def saving_table(trunk: int, width: int) -> list[tuple[str, int, float]]:
    """(head, its parameters, saving) for the head sizes that could stand behind the paper's 42 % on ViT-B."""
    choices = [
        ("one shared head, 32,768 prototypes", HeadsConfig(prototypes=32768, tied=True)),
        ("two heads, 8,192 each", HeadsConfig(prototypes=8192, tied=False)),
        ("two heads, 16,384 each", HeadsConfig(prototypes=16384, tied=False)),
        ("one shared head, 65,536 prototypes", HeadsConfig(prototypes=65536, tied=True)),
        ("two heads, 32,768 each", HeadsConfig(prototypes=32768, tied=False)),
    ]
    rows = []
    for label, cfg in choices:
        heads = head_parameters(width, cfg)
        rows.append((label, heads, head_only_saving(trunk, heads)))
    return rows
