"""Two and three gloo processes with their part of the batch each against one process with all of it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.objectives.distributed import (
    all_gather_with_grad,
    all_reduce_max,
    all_reduce_mean,
    all_reduce_sum,
    from_first_rank,
    rank,
    world_size,
)

SCRIPT = Path(__file__).with_name("ranks.py")


def test_without_a_process_group_the_collectives_are_the_identity():
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    assert (rank(), world_size()) == (0, 1)
    assert all_gather_with_grad(x) is x
    for reduce in (all_reduce_sum, all_reduce_mean, all_reduce_max, from_first_rank):
        result = reduce(x)
        assert torch.equal(result, x)
        assert not result.requires_grad
        result.add_(1)  # a copy: x is not changed by what happens to the result
    assert x.detach().flatten().tolist() == list(range(6))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[dict, dict[int, list[dict]]]:
    """(what one process computes, what each of two and of three computes)."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # no name lookup of this machine
    command = [sys.executable, str(SCRIPT), str(folder), "2", "3"]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compute(0, 1), {n: [torch.load(folder / f"{n}_{r}.pt") for r in range(n)] for n in (2, 3)}


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_give_the_values_and_averaged_gradients_of_one(results, ranks):
    one, several = results
    assert len(one) > 30
    for of_rank in several[ranks]:
        assert of_rank.keys() == one.keys()
        for name, value in one.items():
            torch.testing.assert_close(of_rank[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_the_compared_gradients_are_not_zero(results):
    one, _ = results
    assert min(value.abs().max().item() for name, value in one.items() if "/grad" in name) > 1e-4
