"""Adam, with the gradient clipped by its global norm."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothsa_jax.schedules import schedule_of


def learning_rate_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
    """Return `optimizer.learning_rate` as a function of the step.

    Args:
        config: the `optimizer` part of a config.
        num_steps: number of steps of the whole training.

    Raises:
        UserError: it is neither a number nor a schedule, or the schedule is not valid.
    """
    return schedule_of("optimizer.learning_rate", config["learning_rate"], num_steps)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients by min(1, max_norm / (norm + 1e-6)), as PyTorch does.

    The clipping of optax has no 1e-6.
    """

    def update(grads, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def build_optimizer(config: Mapping[str, Any], num_steps: int) -> optax.GradientTransformation:
    """Make the optimizer of a config for all trained parameters; `clip_norm` 0 means no clipping.

    Args:
        config: the `optimizer` part of a config.
        num_steps: number of steps of the whole training.

    Raises:
        UserError: the learning rate is not valid.
    """
    clip = clip_by_global_norm(config["clip_norm"]) if config["clip_norm"] else optax.identity()
    return optax.chain(clip, optax.adam(learning_rate_schedule(config, num_steps)))
