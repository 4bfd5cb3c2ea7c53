"""Devices a run may be planned for: peak rates from the makers' data sheets, and which share of them a step reaches."""

from __future__ import annotations

from dataclasses import dataclass

from distill.errors import unknown

GB = 1e9

# What large matrix products, attention and streaming kernels usually reach of the peaks; assumed, not measured here.
MATRIX_SHARE, ATTENTION_SHARE, MEMORY_SHARE, LINK_SHARE = 0.65, 0.40, 0.80, 0.75
RESERVED = 0.08  # of the memory: the driver, the libraries' own, what the allocator cannot use
NODE = 8  # devices that the fast links join
NETWORK = 50 * GB  # bytes a second and device between nodes: one 400 Gbit/s card for each
CPU = "cpu"


@dataclass(frozen=True)
class Device:
    """One GPU. `flops`, `fp32`: dense operations a second in bf16, and in fp32 (PyTorch uses no TF32 unasked).

    `link`: bytes a second to its neighbours, one way.
    """

    name: str
    flops: float
    fp32: float
    memory: float  # bytes
    bandwidth: float  # bytes a second
    link: float
    source: str


def _device(name: str, tera: float, fp32: float, memory: float, bandwidth: float, link: float, source: str) -> Device:
    return Device(name, tera * 1e12, fp32 * 1e12, memory * GB, bandwidth * GB, link * GB, source)


GPUS = {
    device.name: device
    for device in (
        _device("a100-40", 312, 19.5, 40, 1555, 300, "NVIDIA A100 data sheet, SXM"),
        _device("a100-80", 312, 19.5, 80, 2039, 300, "NVIDIA A100 data sheet, SXM"),
        _device("h100", 989, 67, 80, 3350, 450, "NVIDIA H100 data sheet, SXM, without sparsity"),
        _device("h200", 989, 67, 141, 4800, 450, "NVIDIA H200 data sheet, SXM, without sparsity"),
        _device("b200", 2250, 75, 180, 8000, 900, "NVIDIA HGX B200 data sheet, an eighth of it, without sparsity"),
        _device("l40s", 362, 91.6, 48, 864, 32, "NVIDIA L40S data sheet, without sparsity, PCIe 4 x16"),
        _device("rtx4090", 165, 82.6, 24, 1008, 32, "NVIDIA Ada white paper, fp32 accumulation, PCIe 4 x16"),
        _device("mi300x", 1307, 163.4, 192, 5300, 448, "AMD Instinct MI300X data sheet, without sparsity"),
    )
}


def find_gpu(name: str) -> Device:
    """The GPU of that name. Raises UserError for one that is not listed."""
    if name not in GPUS:
        raise unknown("gpu", name, [CPU, *GPUS])
    return GPUS[name]
