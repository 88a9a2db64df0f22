"""What training changes: one value, made once, replaced by each step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from smoothsa_jax.models.parameters import Parameters


@flax.struct.dataclass
class TrainState:
    """The step number (of the next step), the trained parameters, the optimiser's state."""

    step: Int[Array, ""]
    params: Parameters
    opt_state: optax.OptState


def create_state(params: Parameters, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before step 0."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


@jax.jit
def copied(tree: Any) -> Any:
    """A copy of all arrays, which stays when they are donated; in one program, where each shape would have one of its own."""
    return jax.tree.map(jnp.copy, tree)
