"""The device kind that a program is compiled for, as a static value.

Programs take it as an argument, so tracing never asks JAX for its devices.
"""

import dataclasses
import functools
import importlib.util
from typing import Any

CUDNN_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True)
class Backend:
    """A kind of device. The default is correct on every device, and fast on a CPU.

    Attributes:
        platform: "cpu", "cuda", "rocm" or "tpu".
        capability: compute capability of an NVIDIA GPU; None for other devices.
        has_cudnn: whether JAX's CUDA plugin, which provides cuDNN's attention, is installed.
    """

    platform: str = "cpu"
    capability: float | None = None
    has_cudnn: bool = False

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"

    @property
    def is_tpu(self) -> bool:
        return self.platform == "tpu"

    @property
    def is_gpu(self) -> bool:
        return self.platform in ("cuda", "rocm")


CPU = Backend()


def backend_of(device: Any) -> Backend:
    """Return the backend of a JAX device, which may belong to a topology that is not present."""
    if device.platform in ("cpu", "tpu"):
        return Backend(device.platform)
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # AMD GPUs have a name instead of a number
        return Backend("rocm")
    return Backend("cuda", capability, _cuda_plugin_is_installed())


@functools.cache
def _cuda_plugin_is_installed() -> bool:
    return any(importlib.util.find_spec(name) is not None for name in CUDNN_PLUGINS)
