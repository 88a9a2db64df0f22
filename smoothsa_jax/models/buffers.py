"""Buffers: arrays that a training step rewrites without the optimizer, such as a queue of slots.

A part makes its buffers as `Buffer` variables. It then has, besides what its interface asks for:

    update_reads         names of the outputs that an update reads
    draw_update(key, sizes) -> draws of one update, of the whole batch
    update(outputs, draws) -> (new arrays by name within the part, numbers for the log)
    with_gradient()      trained array -> output (B,) that tells whether a sample gave it a gradient

An update sees the whole batch and is a pure function. It may also write trained arrays. It runs in
float32 in each training step, on the values that the forward pass used; the optimizer's step comes
on top. The optimizer leaves an array of `with_gradient` alone in a step without gradient: its value
does not move, and neither do its moments nor its count.

Only training has buffers. At evaluation they are ones: a buffer that a forward pass reads has to
mean there what it means at the end of training.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from smoothsa_jax.models.interfaces import Draws, Sizes

DRAWS = "update"  # the key of the draws of all updates


class Buffer(nnx.Variable):
    """An array that a training step rewrites; see the module's text."""


class Updates:
    """The updates of all parts of a model.

    Args:
        model: the model; its arrays are not read, so these may be shapes.
        frozen_parts: the parts that are never trained: they are not updated.
    """

    def __init__(self, model: nnx.Module, frozen_parts: frozenset[str]):
        self._parts = {
            name: part
            for name, part in vars(model).items()
            if hasattr(part, "update_reads") and name not in frozen_parts
        }
        self._with_gradient = {
            f"{name}.{key}": output
            for name, part in self._parts.items()
            for key, output in part.with_gradient().items()
        }
        self.conditional = tuple(self._with_gradient)
        reads = (name for part in self._parts.values() for name in part.update_reads)
        self.reads = frozenset({*reads, *self._with_gradient.values()})

    def __bool__(self) -> bool:
        return bool(self._parts)

    def buffers(self, model: nnx.Module) -> dict[str, Array]:
        """Return the initial buffers of a model, or their shapes if it has shapes."""
        kept = nnx.to_flat_state(nnx.state(model, Buffer))
        named = {".".join(map(str, path)): jax.tree.leaves(x)[0] for path, x in kept}
        return {name: x for name, x in named.items() if self.covers(name)}

    def covers(self, name: str) -> bool:
        """Tell whether an array belongs to a part that is updated."""
        return name.split(".")[0] in self._parts

    def draw(self, key: Array, sizes: Sizes) -> dict[str, Draws]:
        """Draw the random numbers of one update, by part."""
        return {name: part.draw_update(key, sizes) for name, part in self._parts.items()}

    def gradients_of(self, outputs: Mapping[str, Array]) -> dict[str, Bool[Array, ""]]:
        """Tell which of the conditional arrays have a gradient in this step."""
        return {name: jnp.any(outputs[key] > 0) for name, key in self._with_gradient.items()}

    def __call__(
        self, model: nnx.Module, outputs: Mapping[str, Array], draws: Mapping[str, Draws]
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the new arrays by their full names, and numbers for the log.

        Args:
            model: the model with the arrays of this step's forward pass, in float32.
            outputs: the outputs that `reads` lists, of the whole batch.
            draws: what `draw` returned.
        """
        written, numbers = {}, {}
        for name in self._parts:
            arrays, found = getattr(model, name).update(outputs, draws[name])
            written |= {f"{name}.{key}": x for key, x in arrays.items()}
            numbers |= found
        return written, numbers
