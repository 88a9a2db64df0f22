"""Adam, with the gradient clipped by its global norm or by its largest entry."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


class ConditionalState(NamedTuple):
    """State of `conditional_adam`.

    Attributes:
        others: of the arrays that every step moves.
        own: of each conditional array, with a count of its own.
    """

    others: optax.ScaleByAdamState
    own: dict[str, optax.ScaleByAdamState]


def conditional_adam(names: Sequence[str]) -> optax.GradientTransformation:
    """Scale gradients by Adam's moments; some arrays sit out the steps without a gradient.

    For PyTorch, a parameter that took no part in a step has no gradient, and Adam skips it. A
    gradient of zeros, as JAX gives, would decay its moments and move it on by momentum.

    Args:
        names: the conditional arrays. `update` gets the keyword `has_gradient`: name -> bool.
    """
    adam = optax.scale_by_adam()
    if not names:
        return adam

    def others(tree):
        return {name: x for name, x in tree.items() if name not in names}

    def init(params):
        own = {name: adam.init({name: params[name]}) for name in names}
        return ConditionalState(adam.init(others(params)), own)

    def update(grads, state, params=None, *, has_gradient, **more):
        del params, more
        updates, moved = adam.update(others(grads), state.others)
        own = {}
        for name in names:
            now = has_gradient[name]
            found, after = adam.update({name: grads[name]}, state.own[name])
            updates[name] = jnp.where(now, found[name], 0.0)
            keep = lambda new, old, now=now: jnp.where(now, new, old)  # noqa: E731
            own[name] = jax.tree.map(keep, after, state.own[name])
        return {name: updates[name] for name in grads}, ConditionalState(moved, own)

    return optax.GradientTransformationExtraArgs(init, update)


def build_optimizer(
    config: Mapping[str, Any], num_steps: int, conditional: Sequence[str] = ()
) -> optax.GradientTransformation:
    """Make the optimizer of a config for all trained parameters; `clip_norm` 0 means no clipping.

    Args:
        config: the `optimizer` part of a config.
        num_steps: number of steps of the whole training.
        conditional: parameters without a gradient in some steps; see `conditional_adam`.

    Raises:
        UserError: the learning rate is not valid.
    """
    max_norm = config["clip_norm"]
    clipping = clip(max_norm, config["clip_by"]) if max_norm else optax.identity()
    rate = optax.scale_by_learning_rate(learning_rate_schedule(config, num_steps))
    return optax.chain(clipping, optax.chain(conditional_adam(conditional), rate))
