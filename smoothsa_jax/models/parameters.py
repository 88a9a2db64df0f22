"""Models as pure functions of flat dictionaries.

A dictionary has entries such as {"decoder.layers.0.norm_cross.scale": array}.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from smoothsa_jax.models.backend import CPU, Backend
from smoothsa_jax.models.buffers import Buffer

Parameters = dict[str, Array]
# Parts that see pixels alone: where they are frozen, no gradient passes through them.
ENCODER, TARGET_ENCODER = "encoder", "target_encoder"


@dataclasses.dataclass(frozen=True)
class ModelDefinition:
    """A model without its arrays.

    Attributes:
        graphdef: NNX's definition of the model.
        treedef: structure of its state.
        leaves: names of the leaves of its state: arrays and buffers.
        shapes: shapes and dtypes of the leaves.
        dtype: dtype that it computes in. The arrays passed to `merge` are stored in float32.
            Softmax, LayerNorm's statistics and the model's outputs are always float32.
        constants: names of arrays that are never cast, since they are not weights (`nnx.Param`).
        frozen: names of arrays that are never trained.
        buffers: names of the leaves that are buffers; see `models.buffers`.
        backend: the backend that it is compiled for.
        prefix: prefix of its names in the dictionaries passed to `merge`, such as "teacher.".
    """

    graphdef: Any
    treedef: Any
    leaves: tuple[str, ...]
    shapes: tuple[Any, ...]
    dtype: str = "float32"
    constants: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()
    backend: Backend = CPU
    prefix: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its arrays, without the buffers."""
        return tuple(name for name in self.leaves if name not in self.buffers)

    @property
    def frozen_parts(self) -> frozenset[str]:
        """The parts whose arrays are all frozen."""
        trained = {name.split(".")[0] for name in self.names if name not in self.frozen}
        return frozenset(name.split(".")[0] for name in self.names) - trained

    def cast(self, arrays: Parameters) -> Parameters:
        """Cast the model's arrays to the dtype that it computes in.

        `merge` does this too, but arrays that are constant over many calls can be cast once. Arrays
        of other models are returned unchanged.
        """
        if self.dtype == "float32":
            return arrays
        kept = {self.prefix + name for name in self.constants}
        mine = {self.prefix + name for name in self.names} - kept
        return {n: x.astype(self.dtype) if n in mine else x for n, x in arrays.items()}

    def merge(
        self, params: Parameters, frozen: Parameters | None = None, differentiated: bool = True
    ) -> nnx.Module:
        """Return the model with these arrays, cast to `dtype`.

        This is cheap and meant to be called inside `jax.jit`. Gradients with respect to `params`
        are float32, since they pass back through the cast.

        Args:
            params: flat arrays; may include arrays of other models.
            frozen: more arrays, and buffers. Buffers may be left out: they are ones then.
            differentiated: whether gradients may flow. Frozen arrays never receive any.
        """
        given = {**params, **(frozen or {})}
        arrays = self.cast({self.prefix + name: given[self.prefix + name] for name in self.names})

        def leaf(name: str, shape: jax.ShapeDtypeStruct) -> Array:
            full = self.prefix + name
            if name in self.buffers:
                x = given[full] if full in given else jnp.ones(shape.shape, shape.dtype)
                return jax.lax.stop_gradient(x)
            x = arrays[full]
            return x if differentiated and name not in self.frozen else jax.lax.stop_gradient(x)

        state = jax.tree.unflatten(self.treedef, map(leaf, self.leaves, self.shapes))
        return self._prepared(nnx.merge(self.graphdef, state), differentiated)

    def skeleton(self) -> nnx.Module:
        """Return the model with shapes instead of arrays, for what depends on settings alone."""
        state = jax.tree.unflatten(self.treedef, list(self.shapes))
        return self._prepared(nnx.merge(self.graphdef, state), differentiated=False)

    def _prepared(self, model: nnx.Module, differentiated: bool) -> nnx.Module:
        frozen_parts = self.frozen_parts
        modules = list(nnx.iter_modules(model))
        for path, module in modules:
            if hasattr(module, "backend"):
                module.backend = self.backend
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = self.dtype
            if hasattr(module, "frozen_parts"):
                module.frozen_parts = frozen_parts
            if hasattr(module, "differentiated"):
                still = bool(path) and path[0] in frozen_parts & {ENCODER, TARGET_ENCODER}
                module.differentiated = differentiated and not still
        # Gradients go back to the first trained block of an encoder, and no further.
        for path, module in modules:
            if path in ((ENCODER,), (TARGET_ENCODER,)) and hasattr(module, "still_blocks"):
                start = f"{path[0]}."
                trained = (name for name in self.names if name not in self.frozen)
                inside = [name.removeprefix(start) for name in trained if name.startswith(start)]
                for block in module.still_blocks(inside):
                    block.differentiated = False
        return model


def split(
    model: nnx.Module,
    dtype: str = "float32",
    backend: Backend = CPU,
    frozen: Iterable[str] = (),
    prefix: str = "",
) -> tuple[ModelDefinition, Parameters, Parameters]:
    """Split a model into its definition, the trained arrays and the frozen arrays.

    Buffers are in neither; see `models.buffers`.

    Args:
        model: the model.
        dtype: dtype that the merged model will compute in, "float32" or "bfloat16".
        backend: the backend that it will be compiled for.
        frozen: patterns of the names that are not trained, such as "encoder.blocks.[0-7].*".
        prefix: prefix of the arrays' names, here and in `ModelDefinition.merge`.
    """
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    arrays = {_name(path): leaf for path, leaf in leaves}
    kinds = {".".join(map(str, path)): x for path, x in nnx.to_flat_state(state)}
    buffers = frozenset(name for name, x in kinds.items() if isinstance(x, Buffer))
    other = frozenset(name for name, x in kinds.items() if not isinstance(x, nnx.Param))
    constants = other - buffers
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays.values())
    leaves = tuple(arrays)
    arrays = {name: x for name, x in arrays.items() if name not in buffers}
    still = matching(arrays, frozen) | constants
    definition = ModelDefinition(
        graphdef, treedef, leaves, shapes, dtype, constants, still, buffers, backend, prefix
    )
    params = {prefix + name: x for name, x in arrays.items() if name not in still}
    rest = {prefix + name: x for name, x in arrays.items() if name in still}
    return definition, params, rest


def matching(names: Iterable[str], patterns: Iterable[str]) -> frozenset[str]:
    """Return the names that match a pattern: `*` is any text, `[0-7]` one of these characters."""
    patterns = tuple(patterns)
    return frozenset(n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns))


def frozen_patterns(weights: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the patterns of all frozen arrays of a config's `weights`, as full names."""
    found = []
    for entry in weights.values():
        into = entry.get("into", "")
        found += [below(into, pattern) for pattern in entry.get("frozen", ())]
    return tuple(found)


def below(prefix: str, name: str) -> str:
    """Return the full name of `name` below a prefix, which may be empty."""
    return f"{prefix}.{name}" if prefix else name


def place(arrays: Parameters, shardings: dict[str, jax.sharding.Sharding]) -> Parameters:
    """Put arrays on their devices; shapes that stand for arrays get the sharding instead."""
    is_shape = {name: isinstance(x, jax.ShapeDtypeStruct) for name, x in arrays.items()}
    shapes, rest = (
        {n: x for n, x in arrays.items() if is_shape[n] is want} for want in (True, False)
    )
    where = lambda part: {name: shardings[name] for name in part}  # noqa: E731
    return {**shapes_in_place(shapes, where(shapes)), **jax.device_put(rest, where(rest))}


def shapes_in_place(tree: Any, shardings: Any) -> Any:
    """Return the shapes of a tree of arrays or shapes, with their shardings."""
    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(shape, tree, shardings)


def _name(path: tuple) -> str:
    """Join the path of an array in an `nnx.State` by dots, without the last key (its value)."""
    return ".".join(str(getattr(key, "key", key)) for key in path[:-1])
