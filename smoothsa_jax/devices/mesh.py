"""How arrays lie on the devices (docs/devices.md).

The mesh has two axes. Samples are sharded over both. What persists between steps (parameters, the
optimizer's state, the frozen encoder) is sharded over `fsdp`, replicated over `data`, and gathered
within a step.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from smoothsa_jax.devices.mesh_shape import mesh_shape
from smoothsa_jax.models.backend import Backend, backend_of

AXES = ("data", "fsdp")
# In elements. A smaller array (a bias, a LayerNorm) is replicated: gathering it would cost a
# message for a few kB.
SMALL = 4096


def make_mesh(config: ConfigDict) -> Mesh:
    """Make a mesh of `mesh.data` x `mesh.fsdp` devices; -1 for `data` takes all devices.

    Devices are ordered by process. Each process thus has consecutive samples of a batch, and an
    `fsdp` group lies within one host if possible. (`jax.make_mesh` reorders TPUs, and does not
    accept GPUs of several hosts.)

    Args:
        config: the `mesh` part of a config.

    Raises:
        UserError: there are too few devices, or the numbers are not valid.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    shape = mesh_shape(config.data, config.fsdp, len(devices))
    return Mesh(np.array(devices[: shape[0] * shape[1]]).reshape(shape), AXES)


def backend_of_mesh(mesh: Mesh) -> Backend:
    """Return the backend of a mesh's devices."""
    return backend_of(mesh.devices.flat[0])


def own_mesh(mesh: Mesh) -> Mesh:
    """Make a mesh of this process's devices, with `fsdp` groups as in `mesh` if they fit."""
    devices = np.array(jax.local_devices())
    return Mesh(devices.reshape(-1, math.gcd(devices.size, mesh.shape["fsdp"])), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: samples over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def persistent_sharding(mesh: Mesh, tree: Any) -> Any:
    """Return the sharding of each array (or shape) of a tree between steps.

    Arrays are sharded along the largest dimension that `fsdp` divides. This depends on the shape
    alone, so the optimizer's moments are sharded like their parameters.
    """

    def sharding(x: Any) -> NamedSharding:
        shape, parts = np.shape(x), mesh.shape["fsdp"]
        fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
        if parts == 1 or np.prod(shape) < SMALL or not fitting:
            return replicated(mesh)
        longest = max(fitting, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(sharding, tree)
