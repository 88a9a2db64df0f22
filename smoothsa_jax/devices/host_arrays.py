"""Arrays that may be spread over the devices of several hosts, and this host's part of them."""

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
    """Copy all arrays, so that they survive the donation of the originals.

    One program copies all of them, instead of one program per shape.
    """
    return jax.tree.map(jnp.copy, tree)


def copies(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Copy arrays, so that the copies survive the donation of the originals.

    With one process, the copies are in host memory. With several, they stay on the devices, from
    which Orbax fetches them before a save returns. On a CPU, Orbax may keep the buffer itself, so
    there it is copied.
    """
    if hosts.is_multi_process():
        return copied(dict(arrays)) if jax.default_backend() == "cpu" else dict(arrays)
    # On a CPU, a fetched array may share memory with the buffer.
    return {name: np.array(x) for name, x in jax.device_get(dict(arrays)).items()}


def on_host(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Fetch whole arrays to this host's memory, even if spread over hosts; as views if possible."""
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
    """Move a `Training` and parameters to this process's devices, where it scores its own samples.

    The arrays are sharded over these devices as far as they were over all. With one process, the
    arguments are returned unchanged.
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
