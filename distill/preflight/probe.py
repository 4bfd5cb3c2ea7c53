"""Seconds of a training step on this CPU, from short probes: every kind of work once, at the recipe's own shapes.

Blocks of each tower are run for each length of sequence and counted as often as the recipe has them: as many in a row
as are quick, so that what they keep leaves the caches as it does in a step. So are the patch embedding, the heads, the
losses over prototypes and the optimiser. Nothing is built whole, so that a plan takes seconds where the step itself
might not even fit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config.schema import Config
from distill.models.arch import Arch
from distill.models.heads import PrototypeHead
from distill.models.text import TextTower
from distill.models.vision import VisionTower
from distill.objectives.cls_distillation import cls_distillation_loss
from distill.objectives.cross_entropy import prototype_cross_entropy
from distill.objectives.prototypes import PrototypeTargets, chunk_rows, sinkhorn_center
from distill.preflight.cost import Pass, depth_of, head_tokens, images_at_once
from distill.preflight.counts import Counts, Model
from teachers.heads import prototype_parts

BUDGET = 0.3  # seconds for each probe, or three calls
ROW = 0.2  # seconds that blocks in a row may take, unless it is one
TOKENS = 4096  # most tokens of a probe; more are scaled up
ROWS = 512  # most tokens in a probe of the losses over prototypes
SIDE, MATRICES = 724, 8  # of the matrices in the optimiser's probe: 4 M parameters
Clock = Callable[[], float]


def cpu_seconds(
    config: Config, counts: Counts, passes: list[Pass], precision: str, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Seconds of one optimiser step by part, with as many threads as torch has now."""
    images, models = images_at_once(config), {model.name: model for model in counts.models}
    micro = config.train.accumulate
    parts = dict.fromkeys(("blocks", "patch embedding", "heads", "losses over prototypes", "optimiser"), 0.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for one in packed(passes):
            parts["blocks"] += micro * _blocks(one, models[one.model], config, images, clock)
        for one in passes:
            if one.what != "text":
                parts["patch embedding"] += micro * _embedding(one, models[one.model], config, images, clock)
        for model in counts.models:
            if model.role != "teacher (frozen)":
                parts["heads"] += micro * _heads(model, config, images, clock)
                parts["losses over prototypes"] += micro * _losses(model, config, images, clock)
    parts["optimiser"] = counts.trained * _optimiser(config.optim.name, clock)
    return parts


def packed(passes: list[Pass]) -> list[Pass]:
    """Passes through the same blocks with sequences of the same length as one, as trunks run them."""
    found: dict[tuple[str, bool, int, bool], Pass] = {}
    for one in passes:
        key = (one.model, one.what == "text", one.tokens, one.trained)
        before = found.get(key)
        found[key] = one if before is None else replace(before, sequences=before.sequences + one.sequences)
    return list(found.values())


def seconds(call: Callable[[], Any], clock: Clock) -> float:
    """The quickest of at least three calls, after one that does not count; about BUDGET seconds in all."""
    call()
    found: list[float] = []
    while len(found) < 3 or (sum(found) < BUDGET and len(found) < 30):
        began = clock()
        call()
        found.append(clock() - began)
    return min(found)


def step_of(module: Callable[[Tensor], Tensor], x: Tensor, trained: bool) -> Callable[[], None]:
    """A call that runs `module` on `x` forwards and, if `trained`, backwards to its weights and to `x`."""
    x = x.detach().requires_grad_(trained)

    def call() -> None:
        with torch.set_grad_enabled(trained):
            out = module(x)
        if trained:
            out.float().sum().backward()

    return call


def _blocks(one: Pass, model: Model, config: Config, images: int, clock: Clock) -> float:
    """All blocks of one pass of `images` images."""
    text = one.what == "text"
    sequences = images * one.sequences
    some = min(sequences, max(1, TOKENS // one.tokens))
    depth = depth_of(model, config, text)
    x = torch.randn(some, one.tokens, model.arch.width)
    valid = torch.ones(some, 1, 1, one.tokens, dtype=torch.bool) if text else None

    def of(number: int) -> float:
        blocks = [_block(model.arch, text, config) for _ in range(number)]
        in_a_row = lambda x: reduce(lambda out, block: block(out, attn_mask=valid), blocks, x)  # noqa: E731
        return seconds(step_of(in_a_row, x, one.trained), clock) / number

    single = of(1)
    row = min(depth, int(ROW / single))
    return (of(row) if row > 1 else single) * sequences / some * depth


def _block(arch: Arch, text: bool, config: Config) -> nn.Module:
    if text:
        return TextTower(arch, 2, 1, 1, config.text.dropout).blocks[0]
    return VisionTower(arch, depth=1, position_grid=1, gelu=config.vision.gelu).trunk.blocks[0]


def _embedding(one: Pass, model: Model, config: Config, images: int, clock: Clock) -> float:
    """Patches to tokens; pixels need no gradient."""
    embed = VisionTower(model.arch, depth=1, position_grid=config.vision.position_grid).embed
    side = math.isqrt(one.tokens - model.cls_tokens) * model.arch.patch
    number = images * one.sequences
    some = min(number, max(1, TOKENS // one.tokens))
    pixels = torch.rand(some, 3, side, side)

    def call() -> None:
        with torch.set_grad_enabled(one.trained):
            out = embed(pixels, None)
        if one.trained:
            out.float().sum().backward()

    return seconds(call, clock) * number / some


def _heads(model: Model, config: Config, images: int, clock: Clock) -> float:
    """The student's tokens through the head's MLP and back, the teacher's forwards."""
    student, teacher = (images * tokens for tokens in head_tokens(config, model))
    if not student + teacher:
        return 0.0
    head = PrototypeHead(model.arch.width, config.heads)
    total = 0.0
    for tokens, trained in ((student, True), (teacher, False)):
        some = min(tokens, TOKENS)
        if some:
            call = step_of(head.bottleneck, torch.randn(some, model.arch.width), trained)
            total += seconds(call, clock) * tokens / some
    return total


def _losses(model: Model, config: Config, images: int, clock: Clock) -> float:
    """Cross-entropies over prototypes with their targets: of patches, and of local crops."""
    objective, heads = config.objective, config.heads
    head = PrototypeHead(heads.bottleneck, heads)
    unit = lambda rows: F.normalize(torch.randn(rows, heads.bottleneck), dim=-1)  # noqa: E731
    total = 0.0
    cls = "cls" in prototype_parts(config)
    patches = images * (head_tokens(config, model)[1] - cls)
    if patches:
        some = min(patches, ROWS)
        target = PrototypeTargets(unit(some), head.directions().detach(), torch.zeros(heads.prototypes), 0.07)
        student = unit(some).requires_grad_()
        fixed = seconds(lambda: head.directions().sum().backward(), clock)

        def patch_loss() -> None:
            prototype_cross_entropy(student, head.directions(), target, 0.1).total.backward()

        total += fixed + max(0.0, seconds(patch_loss, clock) - fixed) * patches / some
        if objective.patch.balance == "sinkhorn":
            # several chunks, where the step has several
            some = min(patches, max(ROWS, 2 * chunk_rows(target.directions)))
            teacher_patches = unit(some)
            balance = lambda: sinkhorn_center(teacher_patches, target.directions, 0.07)  # noqa: E731
            total += seconds(balance, clock) * patches / some
    if cls and config.views.locals:
        x, teacher = unit(images * config.views.locals).requires_grad_(), unit(images)

        def cls_loss() -> None:
            directions = head.directions()
            targets = (teacher @ directions.detach().T / 0.07).softmax(dim=-1)
            cls_distillation_loss((x @ directions.T).unflatten(0, (images, -1)), targets, 0.1).backward()

        total += seconds(cls_loss, clock)
    return total


def _optimiser(name: str, clock: Clock) -> float:
    """Seconds a trained parameter: clipping and the update."""
    weights = [nn.Parameter(torch.randn(SIDE, SIDE)) for _ in range(MATRICES)]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(weights, fused=True)
    if name == "adafactor":
        optimizer = torch.optim.Adafactor(weights)
    for weight in weights:
        weight.grad = torch.randn_like(weight)

    def call() -> None:
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return seconds(call, clock) / (MATRICES * SIDE * SIDE)
