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
        buffers: arrays that a step updates without the optimizer; see `models.buffers`.
        averages: moving averages of the parameters; each name starts with that of its companion.
    """

    step: Int[Array, ""]
    params: Parameters
    opt_state: optax.OptState
    buffers: Parameters = flax.struct.field(default_factory=dict)
    averages: Parameters = flax.struct.field(default_factory=dict)


def create_state(
    params: Parameters,
    optimizer: optax.GradientTransformation,
    averaged: tuple[str, ...] = (),
    buffers: Parameters | None = None,
) -> TrainState:
    """Return the state before step 0.

    Args:
        params: the initial parameters.
        optimizer: the optimizer.
        averaged: names of the companions that are moving averages of the parameters.
        buffers: the initial buffers.
    """
    averages = {f"{name}.{key}": jnp.copy(x) for name in averaged for key, x in params.items()}
    step, opt_state = jnp.zeros((), jnp.int32), optimizer.init(params)
    return TrainState(step, params, opt_state, buffers or {}, averages)
