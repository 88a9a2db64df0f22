"""Arrays that may lie on the devices of several hosts, and what this host has of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from smoothsa_jax.devices import hosts
from smoothsa_jax.devices.mesh import own_mesh, persistent_sharding


@jax.jit
def copied(tree: Any) -> Any:
    """Copy all arrays, so that they stay when the originals are donated. One program copies all,
    where each shape would have one of its own."""
    return jax.tree.map(jnp.copy, tree)


def copies(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What stays when the arrays are donated: copies in this host's memory.

    Where several hosts share them: on the devices, of which Orbax fetches them before a save returns. Only what it fetches
    from a CPU may be the buffer itself, and is copied.
    """
    if hosts.is_multi_process():
        return copied(dict(arrays)) if jax.default_backend() == "cpu" else dict(arrays)
    # On a CPU what is fetched may share memory with the buffer.
    return {name: np.array(x) for name, x in jax.device_get(dict(arrays)).items()}


def on_host(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Whole arrays in this host's memory, also of such as are spread over hosts; views where that is possible."""
    if not hosts.is_multi_process():
        return {name: np.asarray(x) for name, x in jax.device_get(dict(arrays)).items()}
    return {name: _whole(x) for name, x in arrays.items()}


def _whole(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return multihost_utils.process_allgather(array, tiled=True)


def on_own_devices(training: Any, params: Any = None) -> tuple[Any, Any]:
    """A `Training` and parameters on the devices of this process alone, where it scores its own samples.

    Cut over these as they were over all, as far as there are as many. With one process, what was given.
    """
    if not hosts.is_multi_process():
        return training, params
    mesh, arrays = own_mesh(training.mesh), (training.state, training.frozen, params)
    state, frozen, params = jax.tree.map(_own, arrays, persistent_sharding(mesh, arrays))
    return dataclasses.replace(training, state=state, frozen=frozen, mesh=mesh), params


def _own(x: Any, sharding: NamedSharding) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.device_put(_whole(x), sharding)
