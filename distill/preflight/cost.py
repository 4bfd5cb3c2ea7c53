"""Tokens, floating-point operations and memory of one optimiser step. Estimates: within some tens of per cent.

Counted: matrix products (2 operations per weight and token) and attention (4 T^2 D per layer); a trained pass costs
three forward passes. Normalisation, activations and the optimiser are left out: they take time but few operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.config.schema import Config, HeadsConfig
from distill.models.arch import Arch
from distill.preflight.counts import Counts, Model

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of an activation
GIB = 1 << 30
REFERENCE_FLOPS = 4e14  # a current data-centre GPU in bf16 at about 40 % of its peak


@dataclass(frozen=True)
class Pass:
    """One encoder pass per image: `sequences` of `tokens` tokens."""

    model: str
    what: str  # clean, masked, locals, text, targets
    sequences: int
    tokens: int
    trained: bool


@dataclass(frozen=True)
class Cost:
    """Of one optimiser step over all devices, but memory of one device, in bytes."""

    passes: list[Pass]
    image_tokens: int
    text_tokens: int
    flops: float
    memory: dict[str, float]
    logits_saved: float  # bytes that one whole matrix of prototype logits would take on one device

    @property
    def total_memory(self) -> float:
        return sum(self.memory.values())


def encoder_passes(config: Config, counts: Counts) -> list[Pass]:
    """The passes each image goes through in one step."""
    passes: list[Pass] = []
    objective, views = config.objective, config.views
    distils = bool(objective.cls.weight + objective.patch.weight)
    for model in counts.models:
        side = views.global_size // model.arch.patch
        if model.role == "teacher (frozen)" and counts.meeting is not None:
            side = counts.meeting.teacher
        clean = side * side + model.cls_tokens
        if model.role == "teacher (frozen)":
            if distils:
                passes.append(Pass(model.name, "targets", 1, clean, False))
            continue
        passes.append(Pass(model.name, "clean", 1, clean, model.trains_image))
        if objective.patch.weight > 0 and config.mask.ratio > 0:
            passes.append(Pass(model.name, "masked", 1, clean, model.trains_image))
        if objective.cls.weight > 0:
            local = (views.local_size // model.arch.patch) ** 2 + model.cls_tokens
            passes.append(Pass(model.name, "locals", views.locals, local, model.trains_image))
        if objective.contrastive.weight > 0:
            passes.append(Pass(model.name, "text", model.cls_tokens, config.text.context, model.trains_text))
    if config.teacher.mode == "ema" and distils:
        student = counts.models[0]
        tokens = (views.global_size // student.arch.patch) ** 2 + student.cls_tokens
        passes.append(Pass(student.name, "targets", 1, tokens, False))
    return passes


def block_weights(arch: Arch, text: bool) -> int:
    """Weights of one transformer block's matrices."""
    if text:
        return 4 * arch.width**2 + 2 * arch.width * arch.text_mlp
    return 4 * arch.width**2 + (3 if arch.ffn == "swiglu" else 2) * arch.width * arch.mlp


def head_weights(width: int, cfg: HeadsConfig) -> int:
    """Weights of one prototype head's matrices."""
    sizes = [width, *[cfg.hidden] * (cfg.layers - 1), cfg.bottleneck, cfg.prototypes]
    return sum(a * b for a, b in zip(sizes, sizes[1:]))


def _depth(model: Model, config: Config, text: bool) -> int:
    return (config.text.layers or model.arch.text_layers) if text else model.depth


def _pass_flops(one: Pass, model: Model, config: Config) -> float:
    text = one.what == "text"
    arch, depth = model.arch, _depth(model, config, text)
    linear = 2 * block_weights(arch, text) * one.tokens * depth
    attention = 4 * one.tokens**2 * arch.width * depth
    patches = 0 if text else 2 * 3 * arch.patch**2 * arch.width * (one.tokens - model.cls_tokens)
    return one.sequences * (linear + attention + patches) * (3 if one.trained else 1)


def _head_tokens(config: Config, model: Model) -> tuple[int, int]:
    """(tokens of the student's heads, tokens of the teacher's heads) per image."""
    patches = (config.views.global_size // model.arch.patch) ** 2
    objective = config.objective
    on_patches = patches if objective.patch.weight > 0 and objective.patch.target == "prototypes" else 0
    cls = objective.cls.weight > 0
    return on_patches + (config.views.locals if cls else 0), on_patches + (1 if cls else 0)


def step_cost(config: Config, counts: Counts, precision: str) -> Cost:
    """Cost of one optimiser step at `precision` (fp32, bf16 or fp16; weights and optimiser are fp32 in each)."""
    models = {model.name: model for model in counts.models}
    passes = encoder_passes(config, counts)
    batch = config.train.batch
    flops = sum(_pass_flops(one, models[one.model], config) for one in passes)
    for model in counts.models:
        student, teacher = _head_tokens(config, model)
        weights = 2 * head_weights(model.arch.width, config.heads)
        flops += weights * (teacher if model.role == "teacher (frozen)" else 3 * student)
    if config.teacher.mode != "frozen" and counts.models:
        source = counts.models[-1 if config.teacher.mode == "cotrained" else 0]
        flops += 2 * head_weights(source.arch.width, config.heads) * _head_tokens(config, source)[1]
    text = sum(one.sequences * one.tokens for one in passes if one.what == "text")
    image = sum(one.sequences * one.tokens for one in passes) - text
    per_device = batch / config.train.accumulate / config.train.devices
    return Cost(
        passes=passes,
        image_tokens=batch * image,
        text_tokens=batch * text,
        flops=batch * flops,
        memory=_memory(config, counts, passes, per_device, BYTES[precision]),
        logits_saved=per_device * _head_tokens(config, counts.models[0])[0] * config.heads.prototypes * 4,
    )


def _memory(config: Config, counts: Counts, passes: list[Pass], images: float, width: int) -> dict[str, float]:
    """Bytes on one device, every device holding all weights."""
    models = {model.name: model for model in counts.models}
    activations = 0.0
    for one in passes:
        if one.trained:  # a pass without gradient keeps nothing
            model, text = models[one.model], one.what == "text"
            per_token = _token_elements(model.arch, text) * _depth(model, config, text)
            activations += images * one.sequences * one.tokens * per_token * width
    for model in counts.models:
        if model.role != "teacher (frozen)":
            head = 2 * config.heads.hidden * (config.heads.layers - 1) + 2 * config.heads.bottleneck
            activations += images * _head_tokens(config, model)[0] * head * width
    return {
        "weights": 4.0 * (counts.trained + counts.frozen),
        "gradients": 4.0 * counts.trained,
        "optimiser": (8.0 if config.optim.name == "adamw" else 0.1) * counts.trained,
        "averaged copies": 4.0 * counts.averaged,
        "activations": activations,
    }


def _token_elements(arch: Arch, text: bool) -> int:
    """Numbers kept for the backward pass per token and block: norms, qkv, attention, residuals, hidden layer."""
    if text:
        return 9 * arch.width + arch.text_mlp
    return 10 * arch.width + (4 if arch.ffn == "swiglu" else 2) * arch.mlp
