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
    """A model without its arrays.

    Attributes:
        dtype: in which it computes; the arrays that `merge` takes stay float32 where they are kept. Softmax and LayerNorm's
            statistics are float32 in either, and so is all that the model returns.
        constants: names of arrays that are never cast: those that are no `nnx.Param`, no weights.
    """

    graphdef: Any
    treedef: Any
    names: tuple[str, ...]
    dtype: str = "float32"
    constants: frozenset[str] = frozenset()

    def merge(self, params: Parameters, frozen: Parameters) -> nnx.Module:
        """The model with these arrays, cast to `dtype`; cheap, made to be called inside `jax.jit`.

        Gradients with respect to `params` are float32 all the same: they come back through the cast.
        """
        arrays = {**params, **frozen}
        if self.dtype != "float32":
            cast = lambda name, x: x if name in self.constants else x.astype(self.dtype)  # noqa: E731
            arrays = {name: cast(name, x) for name, x in arrays.items()}
        state = jax.tree.unflatten(self.treedef, [arrays[name] for name in self.names])
        return nnx.merge(self.graphdef, state)


def split(
    model: nnx.Module, dtype: str = "float32"
) -> tuple[ModelDefinition, Parameters, Parameters]:
    """Takes a model apart: its definition, the trained arrays, the frozen ones (the backbone's).

    Args:
        dtype: in which the merged model will compute, "float32" or "bfloat16".
    """
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    arrays = {_name(path): leaf for path, leaf in leaves}
    kinds = nnx.to_flat_state(state)
    constants = frozenset(
        ".".join(map(str, path)) for path, x in kinds if not isinstance(x, nnx.Param)
    )
    definition = ModelDefinition(graphdef, treedef, tuple(arrays), dtype, constants)
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
