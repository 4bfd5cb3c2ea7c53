"""Activation checkpointing: the same losses and gradients, bit by bit, with less kept."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from distill.training.recompute import recompute_blocks

KINDS = ("none", "selective", "full")
NOISE = {"students.0.depth": 3, "text.dropout": 0.1, "vision.drop_path": 0.2}


def held_after_forward(module, batch) -> int:
    """Bytes that are still allocated when the forward pass is over: what is kept for the backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        output = module(batch, 0.07)
    del output
    return sum(event.cpu_memory_usage for event in seen.events() if event.name == "[memory]" and not event.is_legacy)


@pytest.fixture(scope="module")
def kept() -> dict:
    return {}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_bit_equal(build, kind):
    """With dropout and stochastic depth: the second pass draws what the first drew."""

    def step(how: str):
        _, assembly, batch = build(**NOISE)
        assembly.distiller.train()
        recompute_blocks(assembly.distiller, how)
        torch.manual_seed(3)
        output = assembly.distiller(batch, 0.07)
        output.loss.backward()
        return output.loss.detach(), {n: p.grad for n, p in assembly.distiller.named_parameters() if p.grad is not None}

    plain, made_again = step("none"), step(kind)
    assert torch.equal(plain[0], made_again[0])
    assert plain[1].keys() == made_again[1].keys()
    assert [name for name, grad in plain[1].items() if not torch.equal(grad, made_again[1][name])] == []


def test_less_is_kept_for_the_backward_pass(build):
    held = {}
    for kind in KINDS:
        _, assembly, batch = build(**{"students.0.depth": 4, "text.layers": 4})
        recompute_blocks(assembly.distiller.train(), kind)
        assembly.distiller(batch, 0.07).loss.backward()  # what is allocated once, is
        held[kind] = held_after_forward(assembly.distiller, batch)
    assert held["full"] < 0.5 * held["none"]
    assert held["full"] < held["selective"] < 0.8 * held["none"]


def test_frozen_blocks_keep_nothing_anyway_and_are_left_alone(build):
    _, assembly, _ = build()
    model = assembly.distiller.student("student").model
    model.freeze(["text"])
    recompute_blocks(assembly.distiller, "full")
    assert "forward" in vars(model.image.trunk.blocks[0])
    assert "forward" not in vars(model.text.blocks[0])
