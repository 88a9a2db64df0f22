"""Models as pure functions of flat dictionaries: {"decoder.layers.0.norm_cross.scale": array, ...}."""

import dataclasses
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from smoothsa_jax.models.backend import CPU, Backend

Parameters = dict[str, Array]
ENCODER = "encoder"  # the part in front, through which no gradient passes where it is frozen


@dataclasses.dataclass(frozen=True)
class ModelDefinition:
    """A model without its arrays.

    Attributes:
        dtype: in which it computes; the arrays that `merge` takes stay float32 where they are kept.
            Softmax and LayerNorm's statistics are float32 in either, and so is all that the model
            returns.
        constants: names of arrays that are never cast: those that are no `nnx.Param`, no weights.
        frozen: names of arrays that are never trained.
        backend: what it is compiled for.
        prefix: in front of its names in the dictionaries it is merged from, such as "teacher.".
    """

    graphdef: Any
    treedef: Any
    names: tuple[str, ...]
    shapes: tuple[Any, ...]
    dtype: str = "float32"
    constants: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    backend: Backend = CPU
    prefix: str = ""

    @property
    def frozen_parts(self) -> frozenset[str]:
        """The parts of which every array is frozen."""
        trained = {name.split(".")[0] for name in self.names if name not in self.frozen}
        return frozenset(name.split(".")[0] for name in self.names) - trained

    def cast(self, arrays: Parameters) -> Parameters:
        """Cast these arrays of the model to the dtype that it computes in.

        `merge` does so; arrays that stay the same over many calls can be cast once. Arrays of other
        models are left as they are.
        """
        if self.dtype == "float32":
            return arrays
        kept = {self.prefix + name for name in self.constants}
        mine = {self.prefix + name for name in self.names} - kept
        return {n: x.astype(self.dtype) if n in mine else x for n, x in arrays.items()}

    def merge(
        self, params: Parameters, frozen: Parameters | None = None, differentiated: bool = True
    ) -> nnx.Module:
        """Return the model with these arrays, cast to `dtype`; cheap, made to be called inside
        `jax.jit`.

        Gradients with respect to `params` are float32 all the same: they come back through the
        cast.

        Args:
            params: flat; arrays of other models may be among them.
            frozen: more of them.
            differentiated: whether a gradient may pass. Through what is frozen none ever reaches
                the arrays.
        """
        given = {**params, **(frozen or {})}
        arrays = self.cast({self.prefix + name: given[self.prefix + name] for name in self.names})

        def array(name: str) -> Array:
            x = arrays[self.prefix + name]
            return x if differentiated and name not in self.frozen else jax.lax.stop_gradient(x)

        state = jax.tree.unflatten(self.treedef, [array(name) for name in self.names])
        return self._prepared(nnx.merge(self.graphdef, state), differentiated)

    def skeleton(self) -> nnx.Module:
        """Return the model with shapes in place of its arrays, for what depends on its settings
        alone."""
        state = jax.tree.unflatten(self.treedef, list(self.shapes))
        return self._prepared(nnx.merge(self.graphdef, state), differentiated=False)

    def _prepared(self, model: nnx.Module, differentiated: bool) -> nnx.Module:
        frozen_parts = self.frozen_parts
        for path, module in nnx.iter_modules(model):
            if hasattr(module, "backend"):
                module.backend = self.backend
            if hasattr(module, "frozen_parts"):
                module.frozen_parts = frozen_parts
            if hasattr(module, "differentiated"):
                still = bool(path) and path[0] == ENCODER and ENCODER in frozen_parts
                module.differentiated = differentiated and not still
        return model


def split(
    model: nnx.Module,
    dtype: str = "float32",
    backend: Backend = CPU,
    frozen: Iterable[str] = (),
    prefix: str = "",
) -> tuple[ModelDefinition, Parameters, Parameters]:
    """Take a model apart: its definition, the trained arrays, the frozen ones.

    Args:
        dtype: in which the merged model will compute, "float32" or "bfloat16".
        backend: what it will be compiled for.
        frozen: patterns of the names that are not trained, such as "encoder.blocks.[0-7].*".
        prefix: in front of the arrays' names, and of those that it is merged from.
    """
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    arrays = {_name(path): leaf for path, leaf in leaves}
    kinds = nnx.to_flat_state(state)
    constants = frozenset(
        ".".join(map(str, path)) for path, x in kinds if not isinstance(x, nnx.Param)
    )
    still = matching(arrays, frozen)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays.values())
    definition = ModelDefinition(
        graphdef, treedef, tuple(arrays), shapes, dtype, constants, still, backend, prefix
    )
    params = {prefix + name: x for name, x in arrays.items() if name not in still}
    rest = {prefix + name: x for name, x in arrays.items() if name in still}
    return definition, params, rest


def matching(names: Iterable[str], patterns: Iterable[str]) -> frozenset[str]:
    """Return the names that match a pattern: `*` any characters, `[0-7]` one of these."""
    patterns = tuple(patterns)
    return frozenset(n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns))


def frozen_patterns(weights: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the patterns of all frozen arrays of a config's `weights`, by their whole names."""
    found = []
    for entry in weights.values():
        into = entry.get("into", "")
        found += [below(into, pattern) for pattern in entry.get("frozen", ())]
    return tuple(found)


def below(prefix: str, name: str) -> str:
    """Return the whole name of what has a name below a prefix."""
    return f"{prefix}.{name}" if prefix else name


def place(arrays: Parameters, shardings: dict[str, jax.sharding.Sharding]) -> Parameters:
    """Put arrays on their devices; a shape that stands for one tells where that has to go."""
    is_shape = {name: isinstance(x, jax.ShapeDtypeStruct) for name, x in arrays.items()}
    shapes, rest = (
        {n: x for n, x in arrays.items() if is_shape[n] is want} for want in (True, False)
    )
    where = lambda part: {name: shardings[name] for name in part}  # noqa: E731
    return {**shapes_in_place(shapes, where(shapes)), **jax.device_put(rest, where(rest))}


def shapes_in_place(tree: Any, shardings: Any) -> Any:
    """Return the shapes of a tree of arrays or shapes, each with where it has to go."""
    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(shape, tree, shardings)


def _name(path: tuple) -> str:
    """Join the path of an array in an nnx.State by dots, less the last key (its Variable's
    value)."""
    return ".".join(str(getattr(key, "key", key)) for key in path[:-1])
