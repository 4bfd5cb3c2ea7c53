"""Seconds of a step: by the data sheet of a GPU, worked out by hand, and by probes that count every kind of work."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from torch import nn

from distill.preflight.cost import step_cost
from distill.preflight.counts import count_models
from distill.preflight.hardware import ATTENTION_SHARE, GPUS, LINK_SHARE, MATRIX_SHARE, NETWORK, find_gpu
from distill.preflight.memory import Layout
from distill.preflight.probe import cpu_seconds, packed, seconds
from distill.preflight.roofline import exchange_seconds, gpu_seconds
from tests.preflight.test_cost import plan

H100 = find_gpu("h100")
FULL = {"objective.patch.weight": 2, "objective.cls.weight": 1, "views.locals": 3, "views.local_size": 32}


def on_gpu(layout: Layout | None = None, **changes) -> dict[str, float]:
    config, cost = plan("B/16", 64, **changes)
    return gpu_seconds(config, count_models(config), cost.passes, "bf16", H100, layout or Layout())


def test_products_and_attention_are_operations_over_rates():
    parts = on_gpu()
    width, tokens, context, blocks, images = 768, 16 + 2, 16, 2, 4
    block = 4 * width**2 + 2 * width * 3072
    linear = 2 * block * (tokens + 2 * context) * blocks + 2 * 3 * 16**2 * width * 16
    attention = 4 * width * (tokens**2 + 2 * context**2) * blocks
    assert parts["matrix products"] == pytest.approx(images * 3 * linear / (H100.flops * MATRIX_SHARE))
    assert parts["attention"] == pytest.approx(images * 3 * attention / (H100.flops * ATTENTION_SHARE))
    assert parts["heads and prototypes"] == parts["softmaxes over prototypes"] == 0


def test_time_follows_the_batch_but_for_the_optimiser():
    one, two = on_gpu(**FULL), on_gpu(**FULL, **{"train.batch": 8})
    assert all(two[name] == pytest.approx(2 * one[name]) for name in one if name != "optimiser")
    assert two["optimiser"] == one["optimiser"] > 0


def test_a_spare_average_is_moved_where_it_is_held():
    def more(layout: Layout) -> float:
        return on_gpu(layout, **{"students.0.ema": 0.9})["optimiser"] - on_gpu(layout)["optimiser"]

    whole, spread = more(Layout()), more(Layout(spread=4))
    assert whole > 0
    assert whole == pytest.approx(4 * spread)


def test_checkpointing_runs_the_trained_blocks_or_a_part_of_them_once_more():
    none, selective, full = (on_gpu(Layout(checkpointing=kind)) for kind in ("none", "selective", "full"))
    part, whole = (plan["matrix products"] - none["matrix products"] for plan in (selective, full))
    assert 0.3 * none["matrix products"] < whole < none["matrix products"] / 3  # patches are embedded once
    assert part == pytest.approx(5 / 12 * whole)  # projection and first layer: 1 + 4 of 12 width^2
    between = "norms, activations, residuals"
    assert selective[between] == full[between] == pytest.approx(4 / 3 * none[between])
    extra = on_gpu(Layout(checkpointing="full"), **FULL)["attention"] - on_gpu(**FULL)["attention"]
    average = {**FULL, "teacher.mode": "ema"}  # one more pass, without gradient
    more = on_gpu(Layout(checkpointing="full"), **average)["attention"] - on_gpu(**average)["attention"]
    assert more == pytest.approx(extra)


def test_exchange_is_a_ring():
    def exchange(devices: int, layout: Layout = Layout(), **changes) -> float:  # noqa: B008
        config, _ = plan("tiny/8", 64, **changes)
        changed = replace(config, train=replace(config.train, devices=devices))
        return exchange_seconds(changed, count_models(config), H100, layout)

    counts = count_models(plan("tiny/8", 64)[0])
    assert exchange(1) == 0
    assert exchange(4) == pytest.approx(2 * 3 / 4 * 4 * counts.trained / (H100.link * LINK_SHARE))
    assert exchange(16) == pytest.approx(2 * 15 / 16 * 4 * counts.trained / (NETWORK * LINK_SHARE))
    spread = Layout(spread=4)
    half = exchange(4) / 2
    assert exchange(4, spread) == pytest.approx(3 * half)  # gathered twice, and each device gets its slice of the sum
    twice = {"train.accumulate": 2}
    assert exchange(4, spread, **twice) == pytest.approx(8 * half)  # and gathered once more for the contrast
    assert exchange(4, **twice) == pytest.approx(2 * half)  # whole, gradients are summed once a step


def test_a_teacher_that_is_spread_is_gathered_for_every_micro_batch():
    def parts(shard: bool, accumulate: int = 1, devices: int = 16) -> dict[str, float]:
        config, cost = plan("B/16", 64, **FULL, **{"teacher.mode": "ema", "train.accumulate": accumulate})
        train, teacher = replace(config.train, devices=devices), replace(config.teacher, shard=shard)
        changed = replace(config, train=train, teacher=teacher)
        return gpu_seconds(changed, count_models(config), cost.passes, "bf16", H100, Layout())

    name = "gathering the teacher, not hidden"
    image = count_models(plan("B/16", 64)[0]).models[0].image
    once = 15 / 16 * 4 * image / (NETWORK * LINK_SHARE)
    whole, spread, twice = parts(False), parts(True), parts(True, accumulate=2)
    assert whole[name] == parts(True, devices=1)[name] == 0
    blocks = sum(whole[part] for part in ("matrix products", "attention", "norms, activations, residuals"))
    assert once > blocks / 3
    assert spread[name] == pytest.approx(once - blocks / 3)
    assert twice[name] > spread[name] + once / 2
    assert spread["gradient exchange, not hidden"] == whole["gradient exchange, not hidden"]


def test_fp32_has_a_rate_of_its_own():
    assert all(device.fp32 < device.flops for device in GPUS.values())
    config, cost = plan("B/16", 64)
    counts = count_models(config)
    fp32, bf16 = (
        gpu_seconds(config, counts, cost.passes, p, H100, Layout())["matrix products"] for p in ("fp32", "bf16")
    )
    assert fp32 / bf16 == pytest.approx(989 / 67)


def test_figures_of_the_table_are_plausible_and_named():
    for name, device in GPUS.items():
        assert device.name == name
        assert 1e14 < device.flops < 1e16
        assert 2e10 < device.memory < 4e11
        assert device.source


class Steady:
    """A clock on which every call takes a second."""

    def __init__(self):
        self.ticks = count()

    def __call__(self) -> float:
        return float(next(self.ticks))


def test_the_quickest_call_counts():
    times = iter([0, 5, 10, 12, 20, 27])
    calls = []
    assert seconds(lambda: calls.append(1), lambda: next(times)) == 2
    assert len(calls) == 4


def test_probes_count_each_kind_of_work_as_often_as_the_recipe():
    config, cost = plan("tiny/8", 64, **FULL, **{"train.accumulate": 2})
    counts = count_models(config)
    parts = cpu_seconds(config, counts, cost.passes, "fp32", Steady())
    micro, depth = 2, 2
    # clean and masked together, locals, text, and the first pass's clean, text
    assert parts["blocks"] == micro * 5 * depth
    assert parts["patch embedding"] == micro * 4
    assert parts["heads"] == micro * 2  # the student's and the teacher's
    assert parts["losses over prototypes"] == micro * (1 + 2)  # directions, patches (no more than those); CLS
    assert parts["optimiser"] == pytest.approx(counts.trained / (8 * 724**2))


@pytest.mark.parametrize("regressed", [("cls",), ("patch",), ("cls", "patch")])
def test_features_take_no_losses_over_prototypes(regressed):
    changes = {**FULL, **{f"objective.{part}.target": "features" for part in regressed}}
    config, cost = plan("tiny/8", 64, **changes)
    parts = cpu_seconds(config, count_models(config), cost.passes, "fp32", Steady())
    expected = 2 * ("patch" not in regressed) + ("cls" not in regressed)  # patches: loss and balance
    assert parts["losses over prototypes"] == expected


def test_more_work_than_a_probe_takes_is_scaled_up(monkeypatch):
    monkeypatch.setattr("distill.preflight.probe.TOKENS", 200)
    config, cost = plan("tiny/8", 64, **{"train.batch": 512})
    clean = [one for one in cost.passes if one.what == "clean"]
    parts = cpu_seconds(config, count_models(config), clean, "fp32", Steady())
    probed = 200 // 66
    assert parts["blocks"] == pytest.approx(2 * 512 / probed)


def test_passes_of_one_length_through_one_trunk_are_probed_together():
    _, cost = plan("tiny/8", 64, **FULL, **{"train.accumulate": 2})
    found = [(one.what, one.sequences, one.trained) for one in packed(cost.passes)]
    trained = [("clean", 2, True), ("locals", FULL["views.locals"], True), ("text", 2, True)]
    assert found == [*trained, ("clean", 1, False), ("text", 2, False)]


def test_quick_blocks_are_probed_in_a_row_and_each_is_counted_as_often_as_the_recipe_has_it(monkeypatch):
    """By a clock that only blocks move on: three of them fit into the fifth of a second that a row may take."""
    time, rows = [0.0], []

    class Block(nn.Module):
        def forward(self, x, attn_mask=None):
            time[0] += 0.06
            return 2 * x

    def clock() -> float:
        rows.append(time[0])
        return time[0]

    monkeypatch.setattr("distill.preflight.probe._block", lambda *_: Block())
    config, cost = plan("tiny/8", 64, **{"students.0.depth": 9})
    clean = [one for one in cost.passes if one.what == "clean"]
    assert cpu_seconds(config, count_models(config), clean, "fp32", clock)["blocks"] == pytest.approx(9 * 0.06)
    calls = {round(after - before, 2) for before, after in zip(rows, rows[1:])}
    assert calls == {0.0, 0.06, 0.18}


def test_texts_are_trimmed_on_a_cpu_alone():
    settings = {"text.context": 64, "text.tokenizer": "words"}
    anywhere, _ = plan("tiny/8", 64, **settings)
    on_cpu, cost = plan("tiny/8", 64, **settings, **{"train.accelerator": "cpu"})
    assert count_models(anywhere).text_tokens == 64
    longest = count_models(on_cpu).text_tokens
    assert 4 < longest < 40  # the captions of scenes have that many words
    assert [one.tokens for one in cost.passes if one.what == "text"] == [longest]
    assert step_cost(on_cpu, count_models(on_cpu), "fp32").text_tokens == 4 * 2 * longest
