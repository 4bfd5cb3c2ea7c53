"""How a run is spread over processes: who starts them, what each holds, how gradients meet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy

from distill.config.schema import Config, TrainConfig
from distill.errors import UserError
from distill.models.sharding import shard
from distill.training.assemble import Assembly, build_optimizers
from distill.training.compiled import compile_parts
from distill.training.recompute import recompute_blocks

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}  # Fabric's names


@dataclass(frozen=True)
class Launch:
    """Processes that a launcher has started: `world` in all, `here` on this machine."""

    by: str
    world: int
    here: int

    @property
    def nodes(self) -> int:
        return self.world // self.here


def launched() -> Launch | None:
    """What torchrun or srun started, from their environment variables; None when this run starts its own processes."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return Launch("torchrun", int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"]))
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        world = int(env["SLURM_NTASKS"])
        return Launch("srun", world, world // int(env.get("SLURM_NNODES", 1)))
    return None


def processes_here(train: TrainConfig) -> int:
    """Processes of this run on this machine. Raises UserError when the launcher started another number than asked."""
    launch = launched()
    if launch is None:
        return train.devices
    if launch.world != train.devices:
        raise UserError(
            f"train.devices={train.devices}, but {launch.by} started {launch.world} process(es) on {launch.nodes} "
            f"machine(s). Set train.devices={launch.world}, or start {train.devices} (docs/launch.md)."
        )
    return launch.here


def is_sharded_run(train: TrainConfig) -> bool:
    return train.strategy == "fsdp" and train.devices > 1


def make_fabric(cfg: Config) -> Fabric:
    """Fabric with its processes started; every process returns."""
    train = cfg.train
    assert train.threads is not None
    torch.set_num_threads(train.threads)
    launch = launched()
    fabric = Fabric(
        accelerator=train.accelerator,
        devices=processes_here(train),
        num_nodes=1 if launch is None else launch.nodes,
        strategy=_strategy(train),
        precision=None if train.precision == "fp16" else PRECISIONS[train.precision],
        plugins=OneScale(train.accelerator) if train.precision == "fp16" else None,
    )
    fabric.launch()
    return fabric


class OneScale(MixedPrecision):
    """fp16 with one loss scale for all optimisers of a step, which moves once, by `end_step`, after all of them.

    Fabric's own moves with each optimiser, and gradients of a second one would be divided by the scale again.
    """

    def __init__(self, device: str):
        super().__init__(PRECISIONS["fp16"], device)

    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
        assert self.scaler is not None
        return self.scaler.step(optimizer, **kwargs)


def end_step(fabric: Fabric) -> None:
    """After the last optimiser of a step."""
    scaler = scaler_of(fabric)
    if scaler is not None:
        scaler.update()


def scaler_of(fabric: Fabric) -> Any:
    """What scales the loss in fp16, else None."""
    return getattr(fabric.strategy.precision, "scaler", None)


def _strategy(train: TrainConfig) -> Any:
    backend = "nccl" if train.accelerator == "cuda" else "gloo"
    if train.devices == 1:
        return "auto"
    if train.strategy == "fsdp":
        return ModelParallelStrategy(
            lambda module, mesh: shard(module, mesh["data_parallel"], keep_root=True),
            data_parallel_size=train.devices,
            tensor_parallel_size=1,
            process_group_backend=backend,
        )
    return DDPStrategy(
        process_group_backend=backend,
        find_unused_parameters=False,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


def spread(cfg: Config, fabric: Fabric, assembly: Assembly) -> tuple[Any, dict[str, Any]]:
    """Puts a built run on its devices: returns what trains, as Fabric wraps it, and its optimisers by name.

    Sharded, the optimisers are made anew: the parameters are not the same tensors any more. The order matters:
    recomputation goes inside what is compiled, and both inside what is gathered and synchronised.
    """
    assembly.teacher.to(fabric.device)
    for spare in assembly.spares.values():
        spare.to(fabric.device)
    if cfg.teacher.shard and fabric.world_size > 1:
        assembly.teacher.shard(data_mesh(fabric))
    recompute_blocks(assembly.distiller, cfg.train.checkpointing)
    compile_parts([assembly.distiller, *assembly.teacher.modules().values()], cfg.train.compile)
    module = fabric.setup_module(assembly.distiller)
    if is_sharded_run(cfg.train):
        for spare in assembly.spares.values():
            spare.shard(data_mesh(fabric))
        assembly.optimizers = build_optimizers(cfg, assembly.distiller)
    return module, {name: fabric.setup_optimizers(optimizer) for name, optimizer in assembly.optimizers.items()}


def leave(fabric: Fabric) -> None:
    """Ends the process group in order: left to the end of the interpreter, its threads can abort the process."""
    if fabric.world_size > 1:
        fabric.barrier()
        torch.distributed.destroy_process_group()


def data_mesh(fabric: Fabric) -> Any:
    """All ranks in a row, to spread weights over."""
    if isinstance(fabric.strategy, ModelParallelStrategy):
        return fabric.strategy.device_mesh["data_parallel"]
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(fabric.device.type, (fabric.world_size,), mesh_dim_names=("data_parallel",))
