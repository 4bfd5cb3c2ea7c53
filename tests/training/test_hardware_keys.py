"""What the keys about hardware and loading do to a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from distill.config.load import load_config
from distill.config.schema import ScenesConfig
from distill.data.loader import build_loader
from distill.data.sample import SampleError
from distill.data.scenes import SceneSource
from distill.data.sources import open_source
from distill.errors import UserError
from distill.training import precision as precision_module
from distill.training import strategy as strategy_module
from distill.training.settle import settle_hardware

ONE = {"train.steps": 1, "optim.warmup": 0.0}


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_activations_not_weights(small_run, precision, kind, saved):
    seen = set()

    def look(module: torch.nn.Module, _: object, output: object) -> None:
        if isinstance(module, torch.nn.Linear) and isinstance(output, torch.Tensor):
            seen.add(output.dtype)

    hook = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        folder = small_run(**ONE, **{"train.precision": precision, "train.batch": 2}).folder
    finally:
        hook.remove()
    assert seen == {kind}
    weights = saved(folder)["students"]["student"]["weights"]
    assert {w.dtype for w in weights.values()} == {torch.float32}


@pytest.fixture
def fabric_arguments(monkeypatch, small):
    """What Fabric is built with for a recipe, on a pretended machine: `fabric_arguments(gpus, **changes) -> dict`."""

    def ask(gpus: int, **changes) -> dict:
        asked: dict = {}

        def fabric(**arguments):
            asked.update(arguments)
            return SimpleNamespace(launch=lambda: None)

        monkeypatch.setattr(strategy_module, "Fabric", fabric)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
        monkeypatch.setattr(precision_module, "cpu_multiplies_bf16", lambda: False)
        resolved = load_config("pretrain/scenes_tiny", small(**changes))
        settle_hardware(resolved)
        strategy_module.make_fabric(resolved.config)
        return asked

    before = torch.get_num_threads()
    yield ask
    torch.set_num_threads(before)


def test_accelerator_precision_and_devices(fabric_arguments):
    auto = {"train.accelerator": "auto", "train.precision": "auto"}
    found = fabric_arguments(1, **auto)
    assert (found["accelerator"], found["precision"], found["devices"]) == ("cuda", "bf16-mixed", 1)
    found = fabric_arguments(0, **auto)
    assert (found["accelerator"], found["precision"]) == ("cpu", "32-true")
    found = fabric_arguments(1, **auto | {"train.accelerator": "cpu"})  # the GPU is there and stays unused
    assert (found["accelerator"], found["precision"]) == ("cpu", "32-true")
    found = fabric_arguments(2, **auto | {"train.precision": "fp16", "train.devices": 2})
    assert (found["precision"], found["plugins"].precision, found["devices"]) == (None, "16-mixed", 2)
    assert found["strategy"]._process_group_backend == "nccl"
    found = fabric_arguments(2, **{"train.accelerator": "cpu", "train.devices": 2})
    assert (found["accelerator"], found["devices"]) == ("cpu", 2)
    assert found["strategy"]._process_group_backend == "gloo"
    with pytest.raises(UserError, match=r"train.devices=2 with train.accelerator=cuda, but 1 CUDA"):
        fabric_arguments(1, **auto | {"train.devices": 2})


def test_strategies(fabric_arguments):
    cpu = {"train.accelerator": "cpu", "train.devices": 2}
    names = {
        strategy: type(fabric_arguments(0, **cpu, **{"train.strategy": strategy})["strategy"]).__name__
        for strategy in ("auto", "ddp", "fsdp")
    }
    assert names == {"auto": "DDPStrategy", "ddp": "DDPStrategy", "fsdp": "ModelParallelStrategy"}
    assert fabric_arguments(0, **cpu | {"train.devices": 1})["strategy"] == "auto"
    # gradients meet without a search for unused parameters: test_every_trained_parameter_gets_a_gradient says why
    assert fabric_arguments(0, **cpu)["strategy"]._ddp_kwargs["find_unused_parameters"] is False


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}
SRUN = {"SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize("started", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_processes_that_a_launcher_started(fabric_arguments, monkeypatch, started):
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    keys = {"train.accelerator": "cuda", "train.devices": 16, "train.batch": 16}
    found = fabric_arguments(8, **keys)
    assert (found["devices"], found["num_nodes"]) == (8, 2)
    with pytest.raises(UserError, match=r"train.devices=4, but \w+run? started 16 process.* on 2 machine.*devices=16"):
        fabric_arguments(8, **keys | {"train.devices": 4})


def test_threads_as_asked_or_an_even_share_of_the_cores(fabric_arguments, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    for devices, threads, expected in ((1, 2, 2), (1, None, 6), (2, None, 3)):
        fabric_arguments(0, **{"train.threads": threads, "train.devices": devices})
        assert torch.get_num_threads() == expected


def test_a_process_alone_keeps_to_omp_num_threads(fabric_arguments, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    for asked, devices, expected in (("2", 1, 2), ("4,2", 1, 4), ("99", 1, 6), ("0", 1, 6), ("", 1, 6), ("1", 2, 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        fabric_arguments(0, **{"train.threads": None, "train.devices": devices})
        assert torch.get_num_threads() == expected, asked


def test_too_many_unreadable_samples_stop_a_run(small_run, monkeypatch):
    whole = SceneSource.__getitem__

    def broken(self, index: int):
        if index % 4 == 0:
            raise SampleError("scenes", str(index), "corrupt image")
        return whole(self, index)

    monkeypatch.setattr(SceneSource, "__getitem__", broken)
    keys = {"train.steps": 4, "train.batch": 32}
    assert small_run("patient", **keys, **{"data.max_error_rate": 0.4}).finished
    with pytest.raises(UserError, match=r"1\.0%.*corrupt image"):
        small_run("strict", **keys, **{"data.max_error_rate": 0.01})


def test_loader_processes(build):
    cfg, assembly, _ = build()
    source = open_source(cfg.data)
    for workers in (0, 2):
        cfg.data.workers = workers
        batches = iter(build_loader(source, cfg, assembly.tokenizer, grid=(4, 4)))
        next(batches)
        assert len(torch.multiprocessing.active_children()) == workers
        assert len(list(batches)) == 3


def test_cached_scenes_are_drawn_once(monkeypatch):
    drawn = []
    draw = SceneSource._picture

    def count(self: SceneSource, index: int):
        drawn.append(index)
        return draw(self, index)

    monkeypatch.setattr(SceneSource, "_picture", count)
    for cache, times in ((True, 1), (False, 3)):
        source = SceneSource(ScenesConfig(size=32, cache=cache))
        drawn.clear()
        for _ in range(3):
            assert source[5].key == "0-train-5"
        assert drawn == [5] * times
