"""How arrays lie on the devices (docs/scaling.md).

One mesh, two axes. Samples are spread over both. What lasts from step to step (parameters, the optimiser's state, the frozen
backbone) is cut over `fsdp` and repeated over `data`, and gathered for the time of a step.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from smoothsa_jax.validation import mesh_shape

AXES = ("data", "fsdp")
# Elements. A smaller array (a bias, a LayerNorm) stays whole: gathering it would take a message of its own for a few kB.
SMALL = 4096


def make_mesh(config: ConfigDict) -> Mesh:
    """`mesh.data` x `mesh.fsdp` devices; -1 for `data`: all that there are.

    Raises:
        UserError: there are not as many.
    """
    devices = jax.devices()
    shape = mesh_shape(config.data, config.get("fsdp", 1), len(devices))
    types = (AxisType.Auto,) * len(AXES)
    # Neighbours share an `fsdp` group: what moves most, moves within a host.
    return jax.make_mesh(shape, AXES, devices=devices[: shape[0] * shape[1]], axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh) -> NamedSharding:
    """The samples of a batch, over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def kept(mesh: Mesh, tree: Any) -> Any:
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


def gather(mesh: Mesh, tree: Any) -> Any:
    """The arrays whole on every device, inside a jitted function. Said, because XLA might move the activations instead."""
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))
