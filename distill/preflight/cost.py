"""Tokens, floating-point operations and memory of one optimiser step; `distill check` and `distill plan` show them.

Operations counted: matrix products (2 for each weight and token) and attention (4 T^2 D per layer); a trained pass
costs three forward passes. Normalisation, activations and the optimiser take time and traffic but few operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.config.schema import Config, HeadsConfig
from distill.models.arch import Arch
from distill.preflight.counts import Counts, Model
from distill.preflight.memory import Layout, step_memory
from distill.training.negatives import needs_features

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
            passes.append(Pass(model.name, "text", model.cls_tokens, counts.text_tokens, model.trains_text))
        if needs_features(config):  # the first pass, for negatives from all micro-batches
            passes.append(Pass(model.name, "clean", 1, clean, False))
            passes.append(Pass(model.name, "text", model.cls_tokens, counts.text_tokens, False))
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


def weights_again(arch: Arch, text: bool, checkpointing: str) -> int:
    """Weights of a trained block whose products `train.checkpointing` makes again (`distill.training.recompute`)."""
    if checkpointing == "none":
        return 0
    if checkpointing == "full":
        return block_weights(arch, text)
    gated = not text and arch.ffn == "swiglu"
    return arch.width**2 + (2 if gated else 1) * arch.width * (arch.text_mlp if text else arch.mlp)


def head_weights(width: int, cfg: HeadsConfig) -> int:
    """Weights of one prototype head's matrices."""
    sizes = [width, *[cfg.hidden] * (cfg.layers - 1), cfg.bottleneck, cfg.prototypes]
    return sum(a * b for a, b in zip(sizes, sizes[1:]))


def depth_of(model: Model, config: Config, text: bool) -> int:
    """Blocks a pass goes through."""
    return (config.text.layers or model.arch.text_layers) if text else model.depth


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one pass of one image, the backward pass included where it is trained."""

    linear: float
    attention: float
    patches: float  # the patch embedding

    @property
    def total(self) -> float:
        return self.linear + self.attention + self.patches


def pass_operations(one: Pass, model: Model, config: Config) -> Operations:
    """What one image costs in one pass."""
    text = one.what == "text"
    arch, depth = model.arch, depth_of(model, config, text)
    times = one.sequences * (3 if one.trained else 1)
    return Operations(
        linear=times * 2.0 * block_weights(arch, text) * one.tokens * depth,
        attention=times * 4.0 * one.tokens**2 * arch.width * depth,
        patches=0.0 if text else times * 6.0 * arch.patch**2 * arch.width * (one.tokens - model.cls_tokens),
    )


def head_tokens(config: Config, model: Model) -> tuple[int, int]:
    """(tokens of the student's heads, tokens of the teacher's heads) per image."""
    patches = (config.views.global_size // model.arch.patch) ** 2
    objective = config.objective
    on_patches = patches if objective.patch.weight > 0 and objective.patch.target != "features" else 0
    cls = objective.cls.weight > 0 and objective.cls.target != "features"
    return on_patches + (config.views.locals if cls else 0), on_patches + (1 if cls else 0)


def head_flops(config: Config, counts: Counts) -> float:
    """Operations of all heads and prototypes, per image."""
    flops = 0.0
    for model in counts.models:
        student, teacher = head_tokens(config, model)
        weights = 2 * head_weights(model.features, config.heads)
        flops += weights * (teacher if model.role == "teacher (frozen)" else 3 * student)
    if config.teacher.mode != "frozen" and counts.models:
        source = counts.models[-1 if config.teacher.mode == "cotrained" else 0]
        flops += 2 * head_weights(source.arch.width, config.heads) * head_tokens(config, source)[1]
    return flops


def images_at_once(config: Config) -> int:
    """Images of one micro-batch on one device."""
    return max(1, config.train.batch // config.train.accumulate // config.train.devices)


def step_cost(config: Config, counts: Counts, precision: str, layout: Layout | None = None) -> Cost:
    """Cost of one optimiser step at `precision` (fp32, bf16 or fp16; weights and optimiser are fp32 in each).

    `layout`: how weights and activations are kept (None: as the recipe says).
    """
    models = {model.name: model for model in counts.models}
    passes = encoder_passes(config, counts)
    batch = config.train.batch
    flops = sum(pass_operations(one, models[one.model], config).total for one in passes)
    flops += head_flops(config, counts)
    text = sum(one.sequences * one.tokens for one in passes if one.what == "text")
    image = sum(one.sequences * one.tokens for one in passes) - text
    return Cost(
        passes=passes,
        image_tokens=batch * image,
        text_tokens=batch * text,
        flops=batch * flops,
        memory=step_memory(config, counts, passes, images_at_once(config), precision, layout or Layout.of(config)),
        logits_saved=images_at_once(config) * head_tokens(config, counts.models[0])[0] * config.heads.prototypes * 4.0,
    )
