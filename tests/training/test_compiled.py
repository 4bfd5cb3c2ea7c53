"""`train.compile`: what is compiled, and that it computes the same."""

from __future__ import annotations

import shutil
from contextlib import nullcontext

import pytest
import torch
from timm.models.vision_transformer import Block

from distill.objectives import cross_entropy
from distill.training import compiled
from distill.training.compiled import as_written, compile_parts


@pytest.fixture(autouse=True)
def _as_written():
    yield
    cross_entropy.use_compiled_softmaxes(False)


def test_the_key_compiles_blocks_of_students_and_teacher(small_run, monkeypatch):
    ran = []

    def pretend(function, **options):
        name = getattr(function, "__qualname__", str(function))
        return lambda *args, **kwargs: ran.append(name) or function(*args, **kwargs)

    monkeypatch.setattr(compiled.torch, "compile", pretend)
    keys = {"train.steps": 1, "teacher.mode": "ema"}
    plain = small_run("plain", **keys).metrics["loss"]
    assert ran == []
    fast = small_run("fast", **keys, **{"train.compile": "blocks"}).metrics["loss"]
    # one vision block of the student for all views, one of its average, one text block, and the loss
    assert sorted(set(ran)) == ["Block.forward", "_softmaxes"]
    assert ran.count("Block.forward") == 3
    assert fast == plain
    ran.clear()
    small_run("plain_again", **keys)
    assert ran == []


@pytest.fixture
def compiler():
    """A compiler that makes nothing faster: `compiler.made` counts what it was given."""

    def back_end(graph, example_inputs):
        back_end.made += 1
        return graph.forward

    back_end.made = 0
    torch._dynamo.reset()
    yield back_end
    torch._dynamo.reset()


def test_more_than_eight_kinds_of_block_are_all_compiled(compiler):
    """As many as a step has that teaches a family of students: torch's own limit would leave the ninth as it is."""
    towers = [torch.nn.Sequential(Block(8 * n, num_heads=2)) for n in range(1, 13)]
    compile_parts(towers, "blocks", compiler)
    for _ in range(2):
        for n, tower in enumerate(towers, start=1):
            tower(torch.zeros(1, 3, 8 * n))
    assert compiler.made == len(towers)


def test_an_evaluation_compiles_nothing(compiler):
    block = Block(8, num_heads=2)
    compile_parts([block], "blocks", compiler)
    with as_written("blocks"):
        written = block(torch.ones(1, 5, 8))
    assert compiler.made == 0
    assert torch.equal(block(torch.ones(1, 5, 8)), written)
    assert compiler.made == 1
    with as_written("none"):
        block(torch.ones(1, 6, 8))
    assert compiler.made == 2


def test_live_evaluations_run_blocks_as_they_are_written(small_run, monkeypatch):
    stances = []
    monkeypatch.setattr(compiled.torch.compiler, "set_stance", lambda stance: stances.append(stance) or nullcontext())
    monkeypatch.setattr(compiled.torch, "compile", lambda function, **options: function)
    live = {"train.steps": 2, "eval.every": 1, "eval.tasks": ["knn"], "eval.dataset": "scenes:32", "eval.samples": 8}
    small_run("fast", **live, **{"train.compile": "blocks"})
    assert stances == ["force_eager"] * 2


NEEDS_COMPILER = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_COMPILER)])
def test_compiled_parts_give_the_same_step_without_compiling_again(build, backend):
    """Forward and gradient, through the compiler's front end and as it makes code; a second batch compiles nothing."""
    found = []
    for kind in ("none", "blocks"):
        _, assembly, batch = build(**{"students.0.depth": 2})
        compile_parts([assembly.distiller], kind, backend)
        if kind == "blocks":
            assembly.distiller(batch, 0.07)
            torch._dynamo.config.error_on_recompile = True
        try:
            output = assembly.distiller(batch, 0.07)
            output.loss.backward()
        finally:
            torch._dynamo.config.error_on_recompile = False
        found.append((output.parts, {n: p.grad for n, p in assembly.distiller.named_parameters()}))
    (parts, plain), (other, fast) = found
    for name in parts:
        torch.testing.assert_close(parts[name], other[name], rtol=1e-5, atol=1e-6)
    for name in plain:
        torch.testing.assert_close(plain[name], fast[name], rtol=1e-3, atol=1e-6)
