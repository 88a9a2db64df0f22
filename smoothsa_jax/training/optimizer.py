"""Adam, with the gradient clipped by its global norm."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothsa_jax.errors import UserError
from smoothsa_jax.training.schedules import is_schedule, schedule_of


def learning_rate_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
    """Return `optimizer.learning_rate` as a function of the step.

    Args:
        config: the `optimizer` part of a config.
        num_steps: number of steps of the whole training.

    Raises:
        UserError: the rate or its peak is not above 0, or the schedule is not valid.
    """
    path, value = "optimizer.learning_rate", config["learning_rate"]
    schedule = schedule_of(path, value, num_steps)
    peak = value.get("peak", 1.0) if is_schedule(value) else value
    if not peak > 0.0:
        raise UserError(f"{path} is {peak!r}; expected a number above 0; correct --config.{path}")
    return schedule


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
