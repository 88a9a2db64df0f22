"""The state of training: one immutable value that each step replaces."""

import flax.struct
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from smoothsa_jax.models.parameters import Parameters


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
        step: number of steps done.
        params: the trained parameters.
        opt_state: the optimizer's state.
        buffers: arrays that a step updates without the optimizer; none yet.
        averages: moving averages of the parameters; each name starts with that of its companion.
    """

    step: Int[Array, ""]
    params: Parameters
    opt_state: optax.OptState
    buffers: Parameters = flax.struct.field(default_factory=dict)
    averages: Parameters = flax.struct.field(default_factory=dict)


def create_state(
    params: Parameters, optimizer: optax.GradientTransformation, averaged: tuple[str, ...] = ()
) -> TrainState:
    """Return the state before step 0.

    Args:
        params: the initial parameters.
        optimizer: the optimizer.
        averaged: names of the companions that are moving averages of the parameters.
    """
    averages = {f"{name}.{key}": jnp.copy(x) for name in averaged for key, x in params.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), {}, averages)
