"""Seconds of a training step on a GPU, from its data sheet: operations over rates, or bytes over bandwidth.

A first estimate that names what bounds a run. None of it is measured here; `hardware` says which shares are assumed.
"""

from __future__ import annotations

from distill.config.schema import Config
from distill.preflight.cost import (
    Pass,
    block_weights,
    depth_of,
    head_flops,
    head_tokens,
    pass_operations,
    weights_again,
)
from distill.preflight.counts import Counts
from distill.preflight.hardware import (
    ATTENTION_SHARE,
    LINK_SHARE,
    MATRIX_SHARE,
    MEMORY_SHARE,
    NETWORK,
    NODE,
    Device,
)
from distill.preflight.memory import Layout, averaged_here, made_bytes
from distill.training.negatives import needs_features

OPTIMISER_BYTES = 40  # a trained parameter: clip, read and write weight, gradient and two moments


def gpu_seconds(
    config: Config, counts: Counts, passes: list[Pass], precision: str, device: Device, layout: Layout
) -> dict[str, float]:
    """Seconds of one optimiser step by part: all micro-batches, one device of `train.devices`."""
    models = {model.name: model for model in counts.models}
    images = config.train.batch / config.train.devices  # over all micro-batches
    rate = device.fp32 if precision == "fp32" else device.flops
    stream = device.bandwidth * MEMORY_SHARE
    linear = attention = traffic = 0.0
    for one in passes:
        model, text = models[one.model], one.what == "text"
        operations = pass_operations(one, model, config)
        # what is not kept is made once more: a fourth forward pass, whole or of a part of the products
        kind = layout.checkpointing if one.trained else "none"
        repeated = weights_again(model.arch, text, kind) / block_weights(model.arch, text)
        moved = 4 / 3 if kind != "none" else 1.0
        linear += (1 + repeated / 3) * operations.linear + operations.patches
        attention += (4 / 3 if kind == "full" else 1.0) * operations.attention
        tokens = one.sequences * one.tokens * depth_of(model, config, text)
        traffic += moved * (3 if one.trained else 1) * tokens * 2 * made_bytes(model.arch, text, precision)
    parts = {
        "matrix products": images * linear / (rate * MATRIX_SHARE),
        "attention": images * attention / (rate * ATTENTION_SHARE),
        "norms, activations, residuals": images * traffic / stream,
        "heads and prototypes": images * (head_flops(config, counts) / (rate * MATRIX_SHARE)),
        "softmaxes over prototypes": images * _prototype_traffic(config, counts) / stream,
        "optimiser": _update_bytes(config, counts, layout) / stream,
    }
    exchange = exchange_seconds(config, counts, device, layout)
    gathered = teacher_seconds(config, counts, passes, device)
    # meanwhile, at best, the blocks run: their backward pass, two thirds of a trained pass, and the forward pass
    blocks = sum(parts[name] for name in ("matrix products", "attention", "norms, activations, residuals"))
    parts["gradient exchange, not hidden"] = max(0.0, exchange - 2 / 3 * blocks)
    parts["gathering the teacher, not hidden"] = max(0.0, gathered - 1 / 3 * blocks)
    return parts


def _update_bytes(config: Config, counts: Counts, layout: Layout) -> float:
    """Bytes that one device moves to update what it holds of the weights, and of their averages."""
    return OPTIMISER_BYTES * counts.trained / layout.spread + 12.0 * averaged_here(config, counts, layout)


def exchange_seconds(config: Config, counts: Counts, device: Device, layout: Layout) -> float:
    """Seconds of summing gradients over devices in a ring, once a step.

    Spread weights are gathered in fp32 for every micro-batch, forwards, backwards, in a first pass for the contrast;
    their gradients are summed for every micro-batch, and each device keeps its slice, which is half of a whole sum.
    """
    devices = config.train.devices
    if devices == 1:
        return 0.0
    rounds = 2  # halves of a whole sum
    if layout.spread > 1:
        rounds = config.train.accumulate * (1 + (3 if needs_features(config) else 2))
    return (devices - 1) / devices * rounds * 4.0 * counts.trained / _link(devices, device)


def teacher_seconds(config: Config, counts: Counts, passes: list[Pass], device: Device) -> float:
    """Seconds of gathering a teacher that `teacher.shard` spreads: its image tower in fp32, for every micro-batch."""
    devices, models = config.train.devices, {model.name: model for model in counts.models}
    if devices == 1 or not config.teacher.shard:
        return 0.0
    weights = sum(models[one.model].image for one in passes if one.what == "targets")
    return (devices - 1) / devices * config.train.accumulate * 4.0 * weights / _link(devices, device)


def _link(devices: int, device: Device) -> float:
    """Bytes a second that a device sends to the others."""
    return LINK_SHARE * (device.link if devices <= NODE else min(device.link, NETWORK))


def _prototype_traffic(config: Config, counts: Counts) -> float:
    """Bytes moved per image by the tokens x prototypes matrices: each is written or read about ten times in fp32."""
    tokens = sum(sum(head_tokens(config, model)) for model in counts.models if model.role != "teacher (frozen)")
    return 10 * 4.0 * tokens * config.heads.prototypes
