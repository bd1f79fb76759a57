"""What the GPU driver says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Driver:
    """``cuda`` is the newest CUDA version that the driver runs, as (major, minor); ``capabilities`` are the GPUs'
    compute capabilities, by index. ``problem`` says why nothing is known."""

    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    capabilities: Sequence[tuple[int, int]] = ()
    problem: str = ""


def nvml_driver() -> Driver:
    """What NVML says of the driver."""
    try:
        import pynvml
    except ImportError as problem:
        return Driver(problem=str(problem))
    try:
        pynvml.nvmlInit()
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        capabilities = [tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)) for handle in handles]
        version = str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as problem:
        return Driver(problem=str(problem))
    return Driver(version, (number // 1000, number % 1000 // 10), capabilities)
