"""`train.compile`: what is compiled, and that it computes the same."""

from __future__ import annotations

import shutil

import pytest
import torch

from distill.objectives import cross_entropy
from distill.training import compiled
from distill.training.compiled import compile_parts


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
