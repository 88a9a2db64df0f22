"""Devices that are not there, for which programs can be compiled: what a data sheet says of them, and meshes of them."""

import importlib.util
import os
from typing import NamedTuple

# Before JAX starts. libtpu asks a metadata server, and lets one process at a time load it, unless told otherwise.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
# Nothing can be timed without a device, so XLA cannot tune its kernels.
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


class Target(NamedTuple):
    """Figures of one device, from its maker's data sheet.

    Attributes:
        platform: "tpu" or "cuda".
        topology: the smallest that XLA knows with enough devices.
        devices: how many are used unless a mesh is asked for.
        flops: dense bfloat16, FLOP/s.
        bandwidth: of its memory, bytes/s.
        link: what it can send to its neighbours, bytes/s.
        clock: of `estimated_cycles`, 1/s; 0 where the compiler gives none.
    """

    platform: str
    topology: str
    devices: tuple[int, int]
    flops: float
    bandwidth: float
    link: float
    clock: float


TARGETS = {
    "v5e": Target("tpu", "v5e:2x2", (1, 1), 197e12, 0.819e12, 200e9, 1.5e9),
    "v5e-16": Target("tpu", "v5e:4x4", (1, 16), 197e12, 0.819e12, 200e9, 1.5e9),
    "h100": Target("cuda", "1x1x1", (1, 1), 989e12, 3.35e12, 450e9, 0.0),
    "h100x8": Target("cuda", "1x1x8", (8, 1), 989e12, 3.35e12, 450e9, 0.0),
}
PLUGINS = {"tpu": ("libtpu",), "cuda": ("jax_cuda13_plugin", "jax_cuda12_plugin")}
EXTRAS = {"tpu": "tpu", "cuda": "cuda13"}

# XLA's description of an H100 SXM, for a compiler that cannot ask the device.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
runtime_version { major: 13 minor: 0 patch: 0 }
"""


def prepare(target: str) -> None:
    """Sets what has to be set before JAX starts."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if TARGETS[target].platform == "cuda":
        os.environ.setdefault("XLA_FLAGS", GPU_FLAGS)


def missing_plugin(target: str) -> str | None:
    """What to install for a target, in words; None where it is installed."""
    platform = TARGETS[target].platform
    if any(importlib.util.find_spec(name) is not None for name in PLUGINS[platform]):
        return None
    return (
        f"--target={target} needs the compiler of {PLUGINS[platform][0]}, which is not installed; "
        f"install it with: pip install '.[{EXTRAS[platform]}]'"
    )


def mesh_of(target: str, shape: tuple[int, int]):
    """A mesh (data, fsdp) of devices that are not there."""
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh

    from smoothsa_jax.training.mesh import AXES

    chip, count = TARGETS[target], shape[0] * shape[1]
    if chip.platform == "cuda":
        _let_gpu_mean_cuda()
        found = topologies.get_topology_desc(
            "", platform="cuda", target_config=H100, topology=f"1x1x{count}"
        )
    else:
        found = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology)
    devices = sorted(found.devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices[:count]).reshape(shape), AXES)


def _let_gpu_mean_cuda() -> None:
    """Without a device JAX does not know which "gpu" is meant (jax issue 23971)."""
    from jax._src import xla_bridge

    known = xla_bridge.canonicalize_platform
    if not getattr(known, "knows_gpu", False):
        named = lambda name: "cuda" if name in ("gpu", "cuda") else known(name)  # noqa: E731
        named.knows_gpu = True
        xla_bridge.canonicalize_platform = named
