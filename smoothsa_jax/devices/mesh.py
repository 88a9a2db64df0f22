"""How arrays lie on the devices (docs/devices.md).

One mesh, two axes. Samples are spread over both. What lasts from step to step (parameters, the optimiser's state, the frozen
encoder) is cut over `fsdp` and repeated over `data`, and gathered for the time of a step.
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
# Elements. A smaller array (a bias, a LayerNorm) stays whole: gathering it would take a message of its own for a few kB.
SMALL = 4096


def make_mesh(config: ConfigDict) -> Mesh:
    """`mesh.data` x `mesh.fsdp` devices; -1 for `data`: all that there are.

    In the order of their processes, so that each process has neighbouring samples of a batch, and an `fsdp` group lies within a
    host where it can. (`jax.make_mesh` has an order of its own on TPUs, and refuses GPUs of several hosts.)

    Raises:
        UserError: there are not as many.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    shape = mesh_shape(config.data, config.fsdp, len(devices))
    return Mesh(np.array(devices[: shape[0] * shape[1]]).reshape(shape), AXES)


def backend_of_mesh(mesh: Mesh) -> Backend:
    """What a program for the devices of a mesh is compiled for."""
    return backend_of(mesh.devices.flat[0])


def own_mesh(mesh: Mesh) -> Mesh:
    """The devices of this process alone, in `fsdp` groups as large as in `mesh`, or as their number allows."""
    devices = np.array(jax.local_devices())
    return Mesh(devices.reshape(-1, math.gcd(devices.size, mesh.shape["fsdp"])), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh) -> NamedSharding:
    """The samples of a batch, over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def persistent_sharding(mesh: Mesh, tree: Any) -> Any:
    """Where each array (or shape) of a tree lies between steps: cut along its largest dimension that `fsdp` divides.

    The shape alone decides, so the optimiser's moments lie as their parameters do.
    """

    def sharding(x: Any) -> NamedSharding:
        shape, parts = np.shape(x), mesh.shape["fsdp"]
        fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
        if parts == 1 or np.prod(shape) < SMALL or not fitting:
            return replicated(mesh)
        longest = max(fitting, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(sharding, tree)
