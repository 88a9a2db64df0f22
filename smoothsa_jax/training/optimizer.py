"""Adam, with the gradient clipped by its global norm or by its largest entry."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

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


def norm_of(grads: Any, clip_by: str) -> Float[Array, ""]:
    """Return the size of a gradient: its global norm, or its largest absolute entry."""
    return optax.tree.norm(grads, ord=2 if clip_by == "norm" else jnp.inf)


def clip(max_norm: float, clip_by: str) -> optax.GradientTransformation:
    """Scale gradients by min(1, max_norm / (size + 1e-6)), as PyTorch does.

    The clipping of optax has no 1e-6, and clips entries one by one where it clips by the largest.

    Args:
        max_norm: the largest size.
        clip_by: "norm", the global norm, or "largest", the largest absolute entry.
    """

    def update(grads, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / (norm_of(grads, clip_by) + 1e-6))
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
    max_norm = config["clip_norm"]
    clipping = clip(max_norm, config["clip_by"]) if max_norm else optax.identity()
    return optax.chain(clipping, optax.adam(learning_rate_schedule(config, num_steps)))
