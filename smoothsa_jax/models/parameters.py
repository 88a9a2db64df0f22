"""Models as pure functions of flat dictionaries: {"decoder.layers.0.norm_cross.scale": array, ...}."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from smoothsa_jax.models.backend import CPU, Backend

Parameters = dict[str, Array]
FROZEN = "backbone."  # the prefix of what is never trained


@dataclasses.dataclass(frozen=True)
class ModelDefinition:
    """A model without its arrays.

    Attributes:
        dtype: in which it computes; the arrays that `merge` takes stay float32 where they are kept. Softmax and LayerNorm's
            statistics are float32 in either, and so is all that the model returns.
        constants: names of arrays that are never cast: those that are no `nnx.Param`, no weights.
        backend: what it is compiled for.
    """

    graphdef: Any
    treedef: Any
    names: tuple[str, ...]
    dtype: str = "float32"
    constants: frozenset[str] = frozenset()
    backend: Backend = CPU

    def cast(self, arrays: Parameters) -> Parameters:
        """These arrays of the model in the dtype that it computes in. `merge` does so; arrays that stay the same over many
        calls can be cast once."""
        if self.dtype == "float32":
            return arrays
        cast = lambda name, x: x if name in self.constants else x.astype(self.dtype)  # noqa: E731
        return {name: cast(name, x) for name, x in arrays.items()}

    def merge(
        self, params: Parameters, frozen: Parameters, differentiated: bool = True
    ) -> nnx.Module:
        """The model with these arrays, cast to `dtype`; cheap, made to be called inside `jax.jit`.

        Gradients with respect to `params` are float32 all the same: they come back through the cast.

        Args:
            differentiated: whether a gradient may pass. Through what is frozen (`FROZEN`) none ever does.
        """
        arrays = {
            name: x if differentiated and not name.startswith(FROZEN) else jax.lax.stop_gradient(x)
            for name, x in self.cast({**params, **frozen}).items()
        }
        state = jax.tree.unflatten(self.treedef, [arrays[name] for name in self.names])
        model = nnx.merge(self.graphdef, state)
        for path, module in nnx.iter_modules(model):
            if hasattr(module, "backend"):
                module.backend = self.backend
            if hasattr(module, "differentiated"):
                frozen_part = f"{path[0]}." == FROZEN if path else False
                module.differentiated = differentiated and not frozen_part
        return model


def split(
    model: nnx.Module, dtype: str = "float32", backend: Backend = CPU
) -> tuple[ModelDefinition, Parameters, Parameters]:
    """Takes a model apart: its definition, the trained arrays, the frozen ones (the backbone's).

    Args:
        dtype: in which the merged model will compute, "float32" or "bfloat16".
        backend: what it will be compiled for.
    """
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    arrays = {_name(path): leaf for path, leaf in leaves}
    kinds = nnx.to_flat_state(state)
    constants = frozenset(
        ".".join(map(str, path)) for path, x in kinds if not isinstance(x, nnx.Param)
    )
    definition = ModelDefinition(graphdef, treedef, tuple(arrays), dtype, constants, backend)
    frozen = {name: array for name, array in arrays.items() if name.startswith(FROZEN)}
    params = {name: array for name, array in arrays.items() if name not in frozen}
    return definition, params, frozen


def place(arrays: Parameters, shardings: dict[str, jax.sharding.Sharding]) -> Parameters:
    """Arrays on their devices; a shape that stands for one tells where that has to go."""
    is_shape = {name: isinstance(x, jax.ShapeDtypeStruct) for name, x in arrays.items()}
    shapes, rest = (
        {n: x for n, x in arrays.items() if is_shape[n] is want} for want in (True, False)
    )
    where = lambda part: {name: shardings[name] for name in part}  # noqa: E731
    return {**shapes_in_place(shapes, where(shapes)), **jax.device_put(rest, where(rest))}


def shapes_in_place(tree: Any, shardings: Any) -> Any:
    """Shapes of a tree of arrays or shapes, which tell where each has to go."""
    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(shape, tree, shardings)


def _name(path: tuple) -> str:
    """The path of an array in an nnx.State, less the last key (the Variable's value), joined by dots."""
    return ".".join(str(getattr(key, "key", key)) for key in path[:-1])
