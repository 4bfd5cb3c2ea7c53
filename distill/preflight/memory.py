"""Memory of one training step on one device, part by part, in bytes.

What is kept is counted from the modules: for each block and token the residual sums in fp32, and what enters or leaves
attention and the hidden layer in the precision of activations. The tests compare with the storages that autograd
really keeps. Gradients come as activations go, so of the two only the larger counts, where no gradients are there from
the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill.config.schema import Config
from distill.models.arch import Arch
from distill.objectives.contrastive import PART_BYTES
from distill.objectives.prototypes import CHUNK_BYTES, CHUNK_ROWS
from distill.preflight.counts import Counts, Model

if TYPE_CHECKING:
    from distill.preflight.cost import Pass

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of an activation
MIB = 1 << 20
LIBRARIES = {"fp32": 30.0 * MIB, "bf16": 60.0 * MIB}  # code that first steps bring in, and make, on a CPU; measured
HOLES = 0.5  # of what a step takes and gives back: freed pieces on a CPU's heap that nothing fits into; 0.45 to 0.56
CHECKPOINTING = ("none", "selective", "full")


@dataclass(frozen=True)
class Layout:
    """How a step is laid out in memory. `spread`: devices that share weights, gradients and optimiser state."""

    spread: int = 1
    checkpointing: str = "none"

    @classmethod
    def of(cls, config: Config) -> Layout:
        """The layout that the recipe asks for."""
        train = config.train
        return cls(train.devices if train.strategy == "fsdp" else 1, train.checkpointing)


def step_memory(
    config: Config, counts: Counts, passes: Sequence[Pass], images: int, precision: str, layout: Layout
) -> dict[str, float]:
    """Bytes by part, at the end of the forward pass of `images` images, where they are most."""
    spread, teacher = layout.spread, config.teacher
    towers = config.train.devices if teacher.shard else 1  # devices that share the teacher's
    low = 0.0 if precision == "fp32" else 2.0  # autocast keeps a copy of what is trained until the backward pass
    outside = sum(model.heads for model in counts.models if model.trained)  # blocks keep no copies
    passing = {
        "activations": _activations(config, counts, passes, images, precision, layout),
        "heads and losses": _heads(config, counts, images, precision),
        "views": _views(config, images),
        "working space": _working(config, counts, passes, images, precision, layout),
    }
    comes_and_goes = sum(passing.values())
    gradients = 4.0 * counts.trained / spread
    on_cpu = config.train.accelerator == "cpu"
    return {
        "weights": 4.0 * (counts.trained / spread + counts.frozen / (towers if teacher.mode == "frozen" else 1)),
        "gradients": gradients if _gradients_stay(config, layout) else max(0.0, gradients - comes_and_goes),
        "optimiser": (8.0 if config.optim.name == "adamw" else 0.1) * counts.trained / spread,
        "averaged copies": 4.0 * averaged_here(config, counts, layout),
        "low-precision copies": low * outside,  # whole on every device, however weights are spread
        **passing,
        "holes in the heap": HOLES * comes_and_goes if on_cpu else 0.0,
        "libraries": LIBRARIES[precision] if on_cpu else 0.0,
    }


def averaged_here(config: Config, counts: Counts, layout: Layout) -> float:
    """Averaged parameters that one device holds: a student's spare average is spread as the student is."""
    towers = config.train.devices if config.teacher.shard and config.teacher.mode == "ema" else 1
    return (counts.averaged - counts.spare) / towers + counts.spare / layout.spread


def _gradients_stay(config: Config, layout: Layout) -> bool:
    """Whether gradients hold their memory while activations are there: between micro-batches, and in DDP's buckets."""
    return config.train.accumulate > 1 or (config.train.devices > 1 and layout.spread == 1)


def kept_bytes(arch: Arch, text: bool, precision: str, checkpointing: str = "none") -> float:
    """Bytes kept for the backward pass by one block (`distill.models.block`) for one token.

    The block's input and the sum after attention (2 D, fp32), queries, keys and values (3 D), what attention mixes (D)
    and the hidden layer; with a gate both of its halves, and what the norm before it makes (4 D bytes: fp32 once, or
    low precision twice). `full` checkpointing keeps the block's input alone, `selective` what goes into attention and
    comes out of it too.
    """
    low, width = BYTES[precision], arch.width
    if checkpointing == "full":
        return 4.0 * width
    if checkpointing == "selective":
        return 4.0 * width + low * 4 * width
    gated = not text and arch.ffn == "swiglu"
    hidden = arch.text_mlp if text else arch.mlp
    return 8.0 * width + low * (4 * width + (2 if gated else 1) * hidden) + (4.0 * width if gated else 0)


def made_bytes(arch: Arch, text: bool, precision: str) -> float:
    """Bytes that one block makes for one token in its forward pass and reads again, whether they are kept or not.

    Inputs of the two norms (2 D, fp32), of the four matrix products (3 D and the hidden layer) and of attention (3 D),
    its output (D), and the hidden layer before its activation, thrice with a gate, not with ReLU.
    """
    low, width = BYTES[precision], arch.width
    hidden, before = (arch.text_mlp, 0) if text else (arch.mlp, 3 if arch.ffn == "swiglu" else 1)
    return 8.0 * width + low * (7 * width + (1 + before) * hidden)


def _activations(
    config: Config, counts: Counts, passes: Sequence[Pass], images: int, precision: str, layout: Layout
) -> float:
    """What the encoders keep; a pass without gradient keeps nothing."""
    models = {model.name: model for model in counts.models}
    kept = 0.0
    for one in passes:
        if one.trained:
            model, text = models[one.model], one.what == "text"
            depth = (config.text.layers or model.arch.text_layers) if text else model.depth
            per_token = kept_bytes(model.arch, text, precision, layout.checkpointing) * depth
            kept += images * one.sequences * one.tokens * (per_token + 8.0 * model.arch.width)  # embedding, last norm
    return kept


def _heads(config: Config, counts: Counts, images: int, precision: str) -> float:
    """Hidden layers of the heads, prototypes turned to unit length, and what the losses hold."""
    heads, objective = config.heads, config.objective
    size, low = 4.0 * heads.prototypes, BYTES[precision]
    kept: float = 0.0
    for model in (m for m in counts.models if m.role != "teacher (frozen)"):
        patches = _patches(config, model) if objective.patch.weight > 0 else 0
        on_prototypes = patches if objective.patch.target != "features" else 0
        locals_ = config.views.locals if objective.cls.weight > 0 else 0
        hidden = low * 2 * heads.hidden * (heads.layers - 1) + 4.0 * 4 * heads.bottleneck
        kept += images * (on_prototypes + locals_) * hidden
        kept += images * (patches - on_prototypes) * 4.0 * 4 * model.arch.width  # features, standardised and regressed
        kept += images * locals_ * 2 * size  # CLS logits and their log-softmax
        if on_prototypes:
            kept += 4 * size * heads.bottleneck  # directions of student and teacher, their gradient, and its sum
    if objective.cls.weight > 0:
        kept += 2 * images * size  # the teacher's CLS logits and targets
    if objective.contrastive.weight > 0:
        kind = "cpu" if config.train.accelerator == "cpu" else "cuda"
        kept += 4 * min(4.0 * images**2, PART_BYTES[kind])  # similarities are made in parts
    return kept + _prototype_matrices(config, counts, images, low)


def _prototype_matrices(config: Config, counts: Counts, images: int, low: float) -> float:
    """Tokens x prototypes matrices alive at once: logits, targets and slopes of a chunk, in fp32.

    In low precision also the rounded slopes and their product with the chunk's tokens. Sinkhorn-Knopp, which comes
    before, holds fewer.
    """
    patch, prototypes = config.objective.patch, config.heads.prototypes
    if patch.weight == 0 or patch.target == "features":
        return 0.0
    tokens = images * _patches(config, counts.models[0])
    kind = "cpu" if config.train.accelerator == "cpu" else "cuda"
    rows = min(tokens, max(CHUNK_ROWS, CHUNK_BYTES[kind] // (4 * prototypes)))
    rounded = low * prototypes * (rows + config.heads.bottleneck) if low < 4 else 0.0
    return 4.0 * prototypes * 3 * rows + rounded


def _patches(config: Config, model: Model) -> int:
    return (config.views.global_size // model.arch.patch) ** 2


def _views(config: Config, images: int) -> float:
    """The batch, 8 bits a value and as fp32."""
    views = config.views
    return 5.0 * 3 * images * (views.global_size**2 + views.locals * views.local_size**2)


def _working(
    config: Config, counts: Counts, passes: Sequence[Pass], images: int, precision: str, layout: Layout
) -> float:
    """The largest block's gradients in its backward pass, and with checkpointing what it makes again."""
    models = {model.name: model for model in counts.models}
    largest = 0.0
    for one in passes:
        arch, text = models[one.model].arch, one.what == "text"
        need = 1.0 * BYTES[precision] * (4 * arch.width + 2 * (arch.text_mlp if text else arch.mlp))
        if one.trained and layout.checkpointing != "none":
            need += made_bytes(arch, text, precision) - kept_bytes(arch, text, precision, layout.checkpointing)
        largest = max(largest, images * one.sequences * one.tokens * need)
    return largest
