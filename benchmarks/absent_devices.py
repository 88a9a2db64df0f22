"""Devices to compile for that this machine does not have: data sheets and meshes."""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from smoothsa_jax.errors import UserError

# Set before JAX starts. By default, libtpu asks a metadata server and allows one process at a time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
# Nothing can be timed without a device, so XLA cannot tune its kernels.
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


class Chip(NamedTuple):
    """Figures of one device, from its data sheet.

    Attributes:
        platform: "tpu" or "cuda".
        flops: FLOP/s of products of dense bfloat16 matrices.
        float32_flops: of float32 products, by `config.matmul_precision`.
        memory: bytes.
        bandwidth: of its memory, bytes/s.
        link: what it can send to its neighbors, bytes/s.
        clock: of `estimated_cycles`, 1/s; 0 where the compiler gives none.
    """

    platform: str
    flops: float
    float32_flops: dict[str, float]
    memory: float
    bandwidth: float
    link: float
    clock: float

    def flops_of(self, dtype: str, precision: str) -> float:
        """Return the FLOP/s of a config's matrix products."""
        return self.flops if dtype == "bfloat16" else self.float32_flops[precision]


V5E = Chip(
    platform="tpu",
    flops=197e12,
    # One, three and six passes in bfloat16.
    float32_flops={"default": 197e12, "high": 197e12 / 3, "highest": 197e12 / 6},
    memory=16e9,
    bandwidth=0.819e12,
    link=200e9,  # 1600 Gbit/s
    clock=1.5e9,
)
H100 = Chip(
    platform="cuda",
    flops=989e12,  # the data sheet's large figure is of sparse matrices
    float32_flops={"default": 494e12, "high": 494e12, "highest": 67e12},  # TF32, TF32, float32
    memory=80e9,
    bandwidth=3.35e12,
    link=450e9,  # NVLink, one way
    clock=0.0,
)


class Target(NamedTuple):
    """A target of the compiler.

    Attributes:
        topology: as XLA names it. A GPU's is made as large as the mesh.
        devices: how many there are in it.
        mesh: data x fsdp devices, by default.
    """

    chip: Chip
    topology: str
    devices: int
    mesh: tuple[int, int]


TARGETS = {
    "v5e": Target(V5E, "v5e:2x2", 4, (1, 1)),  # the smallest there is
    "v5e-16": Target(V5E, "v5e:4x4", 16, (1, 16)),
    "h100": Target(H100, "1x1x{}", 1, (1, 1)),
    "h100x8": Target(H100, "1x1x{}", 8, (8, 1)),
}
PLUGINS = {"tpu": ("libtpu",), "cuda": ("jax_cuda13_plugin", "jax_cuda12_plugin")}
EXTRAS = {"tpu": "tpu", "cuda": "cuda13"}

# XLA's description of an H100 SXM, for a compiler that cannot ask the device.
H100_DESCRIPTION = """
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


def target_of(arguments: Sequence[str]) -> str | None:
    """Return the value of `--target` on a command line, or None if it is not in `TARGETS`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--target", nargs="?")
    target = parser.parse_known_args(arguments)[0].target
    return target if target in TARGETS else None


def prepare(target: str | None) -> None:
    """Set the environment; call this before JAX starts."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if target and TARGETS[target].chip.platform == "cuda":
        os.environ.setdefault("XLA_FLAGS", GPU_FLAGS)


def missing_plugin(target: str) -> str | None:
    """Return in words what to install for a target, or None if it is installed."""
    platform = TARGETS[target].chip.platform
    if any(importlib.util.find_spec(name) is not None for name in PLUGINS[platform]):
        return None
    return (
        f"--target={target} needs the compiler of {PLUGINS[platform][0]}, which is not installed; "
        f"install it with: pip install '.[{EXTRAS[platform]}]'"
    )


def check_mesh(target: str, shape: tuple[int, int]) -> None:
    """Refuse a mesh that no program can be compiled for.

    Raises:
        UserError: more devices than there are; or some of a TPU's, on which its compiler ends the
            process.
    """
    count, there = shape[0] * shape[1], TARGETS[target].devices
    if 1 <= count <= there and (TARGETS[target].chip.platform == "cuda" or count in (1, there)):
        return
    expected = "one" if there == 1 else f"1 to {there}"
    if TARGETS[target].chip.platform == "tpu":
        expected = f"one or all {there}"
    raise UserError(
        f"--mesh={shape[0]}x{shape[1]} takes {count} devices of {target}; expected {expected}"
    )


def mesh_of(target: str, shape: tuple[int, int]) -> Any:
    """Return a mesh (data, fsdp) of devices that this machine does not have.

    Raises:
        UserError: as `check_mesh`.
    """
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh

    from smoothsa_jax.devices.mesh import AXES

    check_mesh(target, shape)
    count, topology = shape[0] * shape[1], TARGETS[target].topology
    if TARGETS[target].chip.platform == "cuda":
        _let_gpu_mean_cuda()
        found = topologies.get_topology_desc(
            "", platform="cuda", target_config=H100_DESCRIPTION, topology=topology.format(count)
        )
    else:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    devices = sorted(found.devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices[:count]).reshape(shape), AXES)


def _let_gpu_mean_cuda() -> None:
    """Tell JAX that "gpu" means CUDA; it cannot detect that without a device (jax-ml/jax#23971)."""
    from jax._src import xla_bridge

    known = xla_bridge.canonicalize_platform
    if not getattr(known, "knows_gpu", False):
        named = lambda name: "cuda" if name in ("gpu", "cuda") else known(name)  # noqa: E731
        named.knows_gpu = True
        xla_bridge.canonicalize_platform = named
