"""Adam, with the gradient clipped by its global norm or by its largest entry."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.parameters import matching
from smoothsa_jax.schedules import schedule_of

RATE = "learning_rate"  # in the log


def learning_rate_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
    """Return `optimizer.learning_rate` as a function of the step.

    Args:
        config: the `optimizer` part of a config.
        num_steps: number of steps of the whole training.

    Raises:
        UserError: it is neither a number nor a schedule, or the schedule is not valid.
    """
    return schedule_of("optimizer.learning_rate", config["learning_rate"], num_steps)


def learning_rate_schedules(config: Mapping[str, Any], num_steps: int) -> dict[str, optax.Schedule]:
    """Return all learning rates as functions of the step, by the names that the log has.

    Args:
        config: the `optimizer` part of a config.
        num_steps: number of steps of the whole training.

    Returns:
        `learning_rate`, and `learning_rate/NAME` of each entry of `optimizer.rates`.

    Raises:
        UserError: as of `learning_rate_schedule`.
    """
    found = {RATE: learning_rate_schedule(config, num_steps)}
    for name, entry in config["rates"].items():
        path = f"optimizer.rates.{name}.learning_rate"
        found[f"{RATE}/{name}"] = schedule_of(path, entry["learning_rate"], num_steps)
    return found


def rate_of_each(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Return which learning rate each array has.

    Args:
        config: the `optimizer` part of a config.
        names: of the trained arrays.

    Raises:
        UserError: a pattern matches no array, or two entries match one.
    """
    found = dict.fromkeys(names, RATE)
    for name, entry in config["rates"].items():
        path = f"optimizer.rates.{name}.of"
        for pattern in entry["of"]:
            if not matching(found, [pattern]):
                raise UserError(
                    f"{path} has {pattern!r}, which matches no trained array; expected a pattern "
                    f"such as {next(iter(found), 'decoder').split('.')[0] + '.*'!r}"
                )
        for array in matching(found, entry["of"]):
            if found[array] != RATE:
                raise UserError(
                    f"{path} matches {array}, as optimizer.rates.{found[array].split('/')[1]}.of "
                    "does; an array has one learning rate: change one of the two"
                )
            found[array] = f"{RATE}/{name}"
    return found


def scale_by_rates(
    schedules: Mapping[str, optax.Schedule], of_each: Mapping[str, str]
) -> optax.GradientTransformation:
    """Multiply the updates of each array by minus its own learning rate.

    Args:
        schedules: the learning rates by name.
        of_each: array -> the name of its learning rate.
    """

    def update(updates, state, params=None):
        del params
        values = {name: schedule(state.count) for name, schedule in schedules.items()}
        scaled = {name: -values[of_each[name]] * x for name, x in updates.items()}
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    begin = lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))  # noqa: E731
    return optax.GradientTransformation(begin, update)


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
    config: Mapping[str, Any],
    num_steps: int,
    conditional: Sequence[str] = (),
    names: Iterable[str] = (),
) -> optax.GradientTransformation:
    """Make the optimizer of a config for all trained parameters; `clip_norm` 0 means no clipping.

    Args:
        config: the `optimizer` part of a config.
        num_steps: number of steps of the whole training.
        conditional: parameters without a gradient in some steps; see `conditional_adam`.
        names: of all parameters; used where some have learning rates of their own.

    Raises:
        UserError: a learning rate is not valid.
    """
    max_norm = config["clip_norm"]
    clipping = clip(max_norm, config["clip_by"]) if max_norm else optax.identity()
    if config["rates"]:
        schedules = learning_rate_schedules(config, num_steps)
        rate = scale_by_rates(schedules, rate_of_each(config, names))
    else:
        rate = optax.scale_by_learning_rate(learning_rate_schedule(config, num_steps))
    return optax.chain(clipping, optax.chain(conditional_adam(conditional), rate))
