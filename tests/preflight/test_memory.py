"""Memory by part, against what autograd keeps and against sizes worked out by hand."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from distill.models.attention import Layout
from distill.models.text import TextTower
from distill.models.vision import VisionTower
from distill.objectives.prototypes import chunk_rows, sinkhorn_center
from distill.preflight import memory as memory_module
from distill.preflight.cost import step_cost
from distill.preflight.counts import count_models
from distill.preflight.memory import CHECKPOINTING, kept_bytes
from students import parse_arch
from tests.preflight.test_cost import plan, saved_bytes

BATCH, TOKENS = 4, 20


def kept_by(blocks: nn.Sequential, width: int, precision: str) -> int:
    """Bytes that autograd keeps for two packed groups, without the weights."""
    layout = Layout.of([torch.empty(BATCH // 2, TOKENS, width)] * 2)
    x = torch.randn(1, BATCH * TOKENS, width, requires_grad=True)

    def run() -> torch.Tensor:
        out = x
        for block in blocks:
            out = block(out, attn_mask=layout)
        return out

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return saved_bytes(run, list(blocks.parameters()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "text"), [("tiny/8", False), ("tiny/8", True)])
def test_a_block_keeps_what_autograd_keeps(name, text, precision):
    arch = parse_arch(name)
    tower = TextTower(arch, 2, 2, 1) if text else VisionTower(arch, depth=2, position_grid=1).trunk
    found = kept_by(nn.Sequential(*tower.blocks), arch.width, precision)
    assert 2 * BATCH * TOKENS * kept_bytes(arch, text, precision) == pytest.approx(found, rel=0.02)


def test_a_gated_block_keeps_both_halves_of_its_hidden_layer():
    arch = replace(parse_arch("tiny/8"), ffn="swiglu")
    tower = VisionTower(arch, depth=2, position_grid=1).trunk
    found = kept_by(nn.Sequential(*tower.blocks), arch.width, "fp32")
    assert 2 * BATCH * TOKENS * kept_bytes(arch, False, "fp32") == pytest.approx(found, rel=0.02)


def test_checkpointing_keeps_less_and_works_more():
    arch = parse_arch("B/14")
    kept = {kind: kept_bytes(arch, False, "bf16", kind) for kind in CHECKPOINTING}
    assert kept["full"] == 4 * 768  # the input of the block
    assert kept["full"] < kept["selective"] < kept["none"]


def memory(layout: memory_module.Layout | None = None, **changes) -> dict[str, float]:
    config, _ = plan("tiny/8", 64, **{"objective.patch.weight": 2, **changes})
    return step_cost(config, count_models(config), "fp32", layout).memory


def test_spreading_divides_what_is_trained():
    whole, spread = memory(), memory(memory_module.Layout(spread=4))
    for name in ("optimiser", "weights"):
        assert spread[name] == whole[name] / 4
    assert spread["averaged copies"] == whole["averaged copies"]
    assert spread["activations"] == whole["activations"]


def test_spare_averages_are_spread_as_their_students_are():
    distils = {"teacher.mode": "frozen", "teacher.source": "???"}
    with_spare, without = (memory(**distils, **ema)["averaged copies"] for ema in ({"students.0.ema": 0.9}, {}))
    assert with_spare > without == 0
    spread = memory(memory_module.Layout(spread=4), **distils, **{"students.0.ema": 0.9})
    assert spread["averaged copies"] == with_spare / 4
    own, both = (
        memory(memory_module.Layout(spread=4), **ema)["averaged copies"] for ema in ({}, {"students.0.ema": 0.9})
    )
    assert both == own + with_spare / 4  # heads that are averaged stay whole


@pytest.mark.parametrize("balance", ["center", "sinkhorn"])
def test_no_balance_holds_whole_matrices(balance):
    """What more tokens than a chunk add does not depend on the number of prototypes."""

    def grown(prototypes: int) -> float:
        settings = {"heads.prototypes": prototypes, "objective.patch.balance": balance, "train.accelerator": "cpu"}
        four, eight = (memory(**settings, **{"train.batch": batch})["heads and losses"] for batch in (4, 8))
        return eight - four

    assert grown(4096) == grown(8192) > 0


COMES_AND_GOES = ("activations", "heads and losses", "views", "working space")


def test_gradients_count_where_they_are_there_with_the_activations():
    """Between micro-batches and in DDP's buckets; on one device, and spread, only as far as they are more."""

    def trained_and_memory(arch: str = "tiny/8", **changes) -> tuple[float, dict[str, float]]:
        config, cost = plan(arch, 64, **changes)
        return 4.0 * count_models(config).trained, cost.memory

    weights, one = trained_and_memory("B/16")
    assert weights > sum(one[name] for name in COMES_AND_GOES)
    assert one["gradients"] + sum(one[name] for name in COMES_AND_GOES) == pytest.approx(weights)
    assert trained_and_memory(**{"train.batch": 64})[1]["gradients"] == 0
    for more in ({"train.accumulate": 2}, {"train.devices": 2}):
        weights, many = trained_and_memory(**{"train.batch": 64}, **more)
        assert many["gradients"] == weights
    spread = {"train.batch": 64, "train.devices": 2, "train.strategy": "fsdp"}
    assert trained_and_memory(**spread)[1]["gradients"] == 0


def test_a_cpu_has_holes_in_its_heap_and_libraries_besides():
    on_gpu, on_cpu = (memory(**{"train.accelerator": kind}) for kind in ("cuda", "cpu"))
    assert on_gpu["libraries"] == on_gpu["holes in the heap"] == 0
    assert on_cpu["libraries"] > 0
    assert on_cpu["holes in the heap"] == memory_module.HOLES * sum(on_cpu[name] for name in COMES_AND_GOES)


class Largest(TorchDispatchMode):
    """Notes the most bytes that storages of at least `least` bytes held at once, after each operation."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.most = least, 0
        self.seen: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.seen.append(weakref.ref(out))
        storages = [tensor.untyped_storage() for ref in self.seen if (tensor := ref()) is not None]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.most = max(self.most, sum(size for size in sizes.values() if size >= self.least))
        return out


@pytest.mark.parametrize("tokens", [100, 1000])
def test_sinkhorn_holds_less_than_the_loss_after_it(tokens):
    directions, x = (nn.functional.normalize(torch.randn(n, 16), dim=-1) for n in (4096, tokens))
    chunk = 4 * 4096 * min(tokens, chunk_rows(directions))  # bytes
    with Largest(least=chunk // 2) as held:
        sinkhorn_center(x, directions, 0.07)
    assert chunk <= held.most <= 4 * chunk


def test_low_precision_copies_are_of_the_heads_alone():
    config, fp32 = plan("tiny/8", 64)
    counts = count_models(config)
    bf16 = step_cost(config, counts, "bf16")
    assert fp32.memory["low-precision copies"] == 0
    assert bf16.memory["low-precision copies"] == 2 * counts.models[0].heads
    assert bf16.memory["activations"] < fp32.memory["activations"]
