"""The estimates, against what torch counts on the real towers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.config.load import load_config
from distill.config.schema import HeadsConfig
from distill.models.text import TextTower
from distill.models.vision import VisionTower
from distill.preflight.cost import block_weights, head_weights, step_cost
from distill.preflight.counts import count_models
from students import parse_arch

DEPTH = 2


def towers(name: str, side: int, device: str) -> tuple[VisionTower, TextTower]:
    arch = parse_arch(name)
    with torch.device(device):
        image = VisionTower(arch, depth=DEPTH, position_grid=side // arch.patch)
        return image, TextTower(arch, 100, DEPTH, 16, 0.0)


def plan(name: str, side: int, **changes):
    settings = {
        "students.0.arch": name,
        "students.0.depth": DEPTH,
        "text.layers": DEPTH,
        "text.context": 16,
        "views.global_size": side,
        "views.locals": 0,
        "objective.cls.weight": 0,
        "objective.patch.weight": 0,
        "train.batch": 4,
        "data.scenes.count": 8,
        **changes,
    }
    config = load_config("pretrain/scenes_tiny", settings).config
    return config, step_cost(config, count_models(config), "fp32")


@pytest.mark.parametrize(("name", "side"), [("tiny/8", 64), ("B/14", 56), ("g/14", 28)])
def test_operations_of_the_encoders_are_those_torch_counts(name, side):
    image, text = towers(name, side, "meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        image(torch.zeros(1, 3, side, side, device="meta"))
        for _ in range(2):  # two captions
            text(
                torch.zeros(1, 16, dtype=torch.long, device="meta"), torch.ones(1, 16, dtype=torch.bool, device="meta")
            )
    _, cost = plan(name, side)
    assert cost.flops == pytest.approx(4 * 3 * counter.get_total_flops(), rel=0.01)  # 4 images, forward and backward


def saved_bytes(run, parameters) -> int:
    """Bytes of the storages that autograd keeps, but for the parameters."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    seen: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    del kept
    return sum(seen.values())


def test_activation_memory_is_near_what_autograd_keeps():
    image, text = towers("S/8", 64, "cpu")
    ids, valid = torch.zeros(2 * 4, 16, dtype=torch.long), torch.ones(2 * 4, 16, dtype=torch.bool)
    kept = saved_bytes(lambda: image(torch.rand(4, 3, 64, 64)), list(image.parameters()))
    kept += saved_bytes(lambda: text(ids, valid), list(text.parameters()))
    _, cost = plan("S/8", 64)
    assert cost.memory["activations"] == pytest.approx(kept, rel=0.1)


def test_weights_of_a_block_and_a_head_are_its_matrices():
    image, text = towers("g/14", 28, "meta")

    def matrices(module) -> int:
        return sum(p.numel() for p in module.parameters() if p.ndim == 2)

    assert block_weights(image.arch, text=False) == matrices(image.trunk.blocks[0])
    assert block_weights(image.arch, text=True) * DEPTH == matrices(text) - 100 * image.width
    head = HeadsConfig(prototypes=1024, hidden=256, bottleneck=64)
    assert head_weights(128, head) == 128 * 256 + 256 * 256 + 256 * 64 + 64 * 1024


def test_each_switch_adds_its_pass():
    def passes(**changes) -> list[tuple[str, int, int]]:
        _, cost = plan("tiny/8", 64, **changes)
        return [(p.what, p.sequences, p.tokens) for p in cost.passes]

    both = {"objective.patch.weight": 2, "objective.cls.weight": 1, "views.locals": 3, "views.local_size": 32}
    assert passes() == [("clean", 1, 66), ("text", 2, 16)]
    assert passes(**both) == [("clean", 1, 66), ("masked", 1, 66), ("locals", 3, 18), ("text", 2, 16)]
    assert ("masked", 1, 66) not in passes(**both, **{"mask.ratio": 0})
    assert ("targets", 1, 66) in passes(**both, **{"teacher.mode": "ema"})
    assert passes(**{"captions.cls2": []}) == [("clean", 1, 65), ("text", 1, 16)]
    parts = {"train.accumulate": 2}
    assert passes(**parts) == 2 * passes()  # a first pass, without gradient
    assert passes(**parts, **{"objective.contrastive.negatives": "micro"}) == passes()


def test_shards_are_a_share_of_what_is_trained_and_checkpointing_reaches_the_plan():
    both = {"objective.patch.weight": 2, "train.devices": 4}
    _, whole = plan("tiny/8", 64, **both)
    _, shard = plan("tiny/8", 64, **both, **{"train.strategy": "fsdp"})
    for name in ("weights", "optimiser"):
        assert shard.memory[name] == whole.memory[name] / 4
    assert shard.memory["averaged copies"] == whole.memory["averaged copies"]
    ema = both | {"teacher.mode": "ema"}
    copies = [plan("tiny/8", 64, **ema, **{"teacher.shard": s})[1].memory["averaged copies"] for s in (True, False)]
    assert copies[0] == copies[1] / 4
    kept = {
        kind: plan("tiny/8", 64, **both, **{"train.checkpointing": kind})[1].memory["activations"]
        for kind in ("none", "selective", "full")
    }
    assert kept["none"] > 1.3 * kept["selective"] > 1.3 * kept["full"]


def test_contrast_over_micro_batches_takes_a_first_pass_without_gradient():
    def first(**changes) -> list[tuple[str, int]]:
        _, cost = plan("tiny/8", 64, **changes)
        return [(p.what, p.tokens) for p in cost.passes if not p.trained]

    assert first(**{"train.accumulate": 2}) == [("clean", 66), ("text", 16)]
    assert first() == first(**{"train.accumulate": 2, "objective.contrastive.negatives": "micro"}) == []


def test_a_teacher_without_gradient_costs_a_third():
    def flops(mode: str) -> float:
        changes = {"teacher.mode": mode, "objective.patch.weight": 2, "objective.contrastive.weight": 0}
        return plan("tiny/8", 64, **changes)[1].flops

    _, clean = plan("tiny/8", 64, **{"objective.patch.weight": 2, "objective.contrastive.weight": 0, "mask.ratio": 0})
    _, masked = plan("tiny/8", 64, **{"objective.patch.weight": 2, "objective.contrastive.weight": 0})
    one_trained_pass = masked.flops - clean.flops
    assert flops("ema") - flops("ema_head") == pytest.approx(one_trained_pass / 3)


def test_memory_follows_optimiser_devices_and_copies():
    both = {"objective.patch.weight": 2}
    _, adamw = plan("tiny/8", 64, **both)
    _, adafactor = plan("tiny/8", 64, **both, **{"optim.name": "adafactor"})
    _, split = plan("tiny/8", 64, **both, **{"train.devices": 2})
    _, full = plan("tiny/8", 64, **both, **{"teacher.mode": "ema"})
    assert adamw.memory["optimiser"] == 2 * adamw.memory["weights"]
    assert adafactor.memory["optimiser"] < 0.05 * adamw.memory["optimiser"]
    assert split.memory["activations"] == adamw.memory["activations"] / 2
    assert split.flops == adamw.flops
    assert full.memory["averaged copies"] > adamw.memory["averaged copies"] > 0
