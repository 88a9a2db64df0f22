"""Values that change with the training step: a number, or a schedule from the config.

    {"schedule": "step", "begin": 1.0, "end": 0.0, "at": 0.1}     `begin` for the first tenth
    {"schedule": "cosine", "begin": 0.0, "end": 1.0}              half a cosine over all steps
    {"schedule": "warmup_cosine", "peak": 2e-4, "warmup": 0.05, "end_ratio": 1e-3}

`at` and `warmup` are fractions of `train.num_steps`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.parts import make


def step(num_steps: int, *, begin: float, end: float, at: float) -> optax.Schedule:
    """Return a schedule: `begin` for the fraction `at` of the steps, then `end`."""
    return lambda count: jnp.where(count < at * num_steps, begin, end)


def cosine(num_steps: int, *, begin: float, end: float) -> optax.Schedule:
    """Return a schedule: half a cosine from `begin` at step 0 to `end` at the last step."""

    def value(count: Int[Array, ""]) -> Array:
        done = jnp.minimum(count / num_steps, 1.0)
        return begin + (end - begin) * 0.5 * (1.0 - jnp.cos(jnp.pi * done))

    return value


def warmup_cosine(
    num_steps: int, *, peak: float, warmup: float, end_ratio: float
) -> optax.Schedule:
    """Return a schedule: a linear warm-up, then a cosine.

    Args:
        num_steps: number of steps of the whole training.
        peak: value after the warm-up, which starts at 0.
        warmup: length of the warm-up, as a fraction of the steps.
        end_ratio: final value, relative to `peak`.

    Raises:
        UserError: a setting is out of range, or the warm-up leaves no step.
    """
    for key, value in (("warmup", warmup), ("end_ratio", end_ratio)):
        if not 0.0 <= value < (1.0 if key == "warmup" else float("inf")):
            raise UserError(
                f"a warmup_cosine schedule has {key} {value}; expected a number of at least 0"
                + " and below 1" * (key == "warmup")
            )
    if round(warmup * num_steps) >= num_steps:
        raise UserError(
            f"a warmup_cosine schedule has warmup {warmup}, which leaves no step of {num_steps} "
            "after the warm-up; lower it or raise train.num_steps"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=round(warmup * num_steps),
        decay_steps=num_steps,
        end_value=end_ratio * peak,
    )


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "step": step,
    "cosine": cosine,
    "warmup_cosine": warmup_cosine,
}


def is_schedule(value: Any) -> bool:
    """Tell whether a value of a config describes a schedule."""
    return isinstance(value, Mapping) or hasattr(value, "to_dict")


def schedule_of(path: str, value: Any, num_steps: int) -> optax.Schedule:
    """Return a value of a config as a function of the step.

    Args:
        path: path of the setting, for messages.
        value: a number, or a schedule as above.
        num_steps: number of steps of the whole training.

    Raises:
        UserError: the value is neither, or the schedule's settings are not valid.
    """
    if not is_schedule(value):
        return optax.constant_schedule(_number(path, value))
    if "schedule" not in value:
        raise UserError(
            f"{path} is {dict(value)}; expected a number, or a schedule with the key "
            f"'schedule' ({', '.join(SCHEDULES)})"
        )
    settings = {"name" if key == "schedule" else key: x for key, x in value.items()}
    if settings["name"] not in SCHEDULES:
        raise UserError(
            f"{path}.schedule is {settings['name']!r}; expected one of {', '.join(SCHEDULES)}"
            f"{did_you_mean(str(settings['name']), SCHEDULES)}"
        )
    return make(path, settings, SCHEDULES, num_steps)


class Schedules:
    """All values of a config that may change with the step.

    Args:
        settings: a tree of dictionaries with numbers and schedules as leaves.
        num_steps: number of steps of the whole training.

    Raises:
        UserError: a leaf is neither, or a schedule's settings are not valid.
    """

    def __init__(self, settings: Mapping[str, Any], num_steps: int):
        def prepared(path: str, value: Any) -> Any:
            if is_schedule(value) and "schedule" not in value:
                return {k: prepared(f"{path}.{k}", x) for k, x in value.items()}
            return (
                schedule_of(path, value, num_steps) if is_schedule(value) else _number(path, value)
            )

        self._tree = {name: prepared(name, value) for name, value in settings.items()}

    def at(self, count: Int[Array, ""]) -> dict[str, Any]:
        """Return the tree with the values at a step; constants stay Python numbers."""
        return jax.tree.map(lambda x: x(count) if callable(x) else x, self._tree)


def _number(path: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"{path} is {value!r}; expected a number or a schedule; correct --config.{path}"
        )
    return value
