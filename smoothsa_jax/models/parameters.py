"""Models as pure functions of flat dictionaries: {"decoder.layers.0.norm_cross.scale": array, ...}."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

Parameters = dict[str, Array]
FROZEN = "backbone."  # the prefix of what is never trained


@dataclasses.dataclass(frozen=True)
class ModelDefinition:
    """A model without its arrays."""

    graphdef: Any
    treedef: Any
    names: tuple[str, ...]

    def merge(self, params: Parameters, frozen: Parameters) -> nnx.Module:
        """The model with these arrays; cheap, made to be called inside `jax.jit`."""
        arrays = {**params, **frozen}
        state = jax.tree.unflatten(self.treedef, [arrays[name] for name in self.names])
        return nnx.merge(self.graphdef, state)


def split(model: nnx.Module) -> tuple[ModelDefinition, Parameters, Parameters]:
    """Takes a model apart: its definition, the trained arrays, the frozen ones (the backbone's)."""
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    arrays = {_name(path): leaf for path, leaf in leaves}
    definition = ModelDefinition(graphdef, treedef, tuple(arrays))
    frozen = {name: array for name, array in arrays.items() if name.startswith(FROZEN)}
    params = {name: array for name, array in arrays.items() if name not in frozen}
    return definition, params, frozen


def place(arrays: Parameters, shardings: dict[str, jax.sharding.Sharding]) -> Parameters:
    """Arrays on their devices; a shape that stands for one tells where that has to go."""
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name])
        for name, x in arrays.items()
        if isinstance(x, jax.ShapeDtypeStruct)
    }
    rest = {name: x for name, x in arrays.items() if name not in shapes}
    return {**shapes, **jax.device_put(rest, {name: shardings[name] for name in rest})}


def _name(path: tuple) -> str:
    """The path of an array in an nnx.State, less the last key (the Variable's value), joined by dots."""
    return ".".join(str(getattr(key, "key", key)) for key in path[:-1])
