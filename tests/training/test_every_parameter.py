"""Gradient synchronisation searches for no unused parameters: under every objective and mode there are none."""

from __future__ import annotations

from itertools import combinations, product
from random import Random
from typing import Any

import pytest
import torch

from distill.training.negatives import Replay, first_pass
from distill.training.recompute import recompute_blocks

FACTORS: dict[str, tuple[Any, ...]] = {
    "teacher.mode": ("ema_head", "ema", "none", "cotrained", "frozen"),
    "contrast": ("off", "softmax", "sigmoid"),
    "objective.cls.weight": (1.0, 0.0),
    "patch": ("off", "masked", "visible", "all", "features"),
    "mask.ratio": (0.75, 0.0),
    "heads.tied": (True, False),
    "captions.cls2": (["synthetic"], []),
    "balance": ("center", "sinkhorn"),
    "first pass": (False, True),  # contrast over several micro-batches
    "train.checkpointing": ("none", "full", "selective"),
}


def possible(row: dict[str, Any]) -> bool:
    learns = row["contrast"] != "off" or row["objective.cls.weight"] or row["patch"] != "off"
    return bool(learns) and not (row["mask.ratio"] == 0 and row["patch"] == "masked")


def covering(seed: int = 0) -> list[dict[str, Any]]:
    """Possible rows that hold, together, every possible pair of values of two factors."""
    rows = [dict(zip(FACTORS, values)) for values in product(*FACTORS.values())]
    rows = [row for row in rows if possible(row)]
    Random(seed).shuffle(rows)
    missing = {pair for row in rows for pair in pairs(row)}
    chosen = []
    for least in (35, 25, 15, 8, 4, 1):  # rows that bring much first
        for row in rows:
            if len(missing & pairs(row)) >= least:
                chosen.append(row)
                missing -= pairs(row)
    assert not missing
    return chosen


def pairs(row: dict[str, Any]) -> set[tuple]:
    return set(combinations(((key, str(value)) for key, value in row.items()), 2))


def overrides(row: dict[str, Any], teacher: str) -> dict[str, Any]:
    keys = {key: value for key, value in row.items() if "." in key}
    contrast, patch = row["contrast"], row["patch"]
    keys |= {"objective.contrastive.weight": 0.0} if contrast == "off" else {"objective.contrastive.loss": contrast}
    keys |= {
        "off": {"objective.patch.weight": 0.0},
        "features": {"objective.patch.target": "features"},
    }.get(patch, {"objective.patch.tokens": patch})
    keys |= {f"objective.{term}.balance": row["balance"] for term in ("cls", "patch")}
    if row["teacher.mode"] == "cotrained":
        keys |= {"teacher.arch": "tiny/8", "teacher.depth": 1}
        keys |= {"teacher.tokens": "all"} if row["mask.ratio"] == 0 else {}
    if row["teacher.mode"] == "frozen":
        keys["teacher.source"] = f"run:{teacher}"
    return keys


@pytest.mark.slow
def test_every_trained_parameter_gets_a_gradient_under_every_pair_of_choices(build, small_run):
    teacher = str(small_run("teacher", **{"train.steps": 1, "captions.cls2": []}).folder)
    rows = covering()
    assert len(rows) < 120
    for row in rows:
        cfg, assembly, batch = build(**overrides(row, teacher))
        distiller = assembly.distiller.train()
        recompute_blocks(distiller, cfg.train.checkpointing)
        slopes = [None]
        if row["first pass"] and row["contrast"] != "off":
            slopes = first_pass(distiller, [batch, batch], torch.device("cpu"), row["contrast"], Replay(2))
        distiller(batch, 0.07, slopes[0]).loss.backward()
        named = dict(distiller.named_parameters())
        assert [name for name, p in named.items() if p.requires_grad and p.grad is None] == [], row
        assert [name for name, p in named.items() if not p.requires_grad and p.grad is not None] == [], row
