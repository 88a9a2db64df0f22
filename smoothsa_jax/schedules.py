"""Values that change with the training step: a number, or a schedule from the config.

    {"schedule": "step", "begin": 1.0, "end": 0.0, "at": 0.1}     `begin` for the first tenth
    {"schedule": "linear", "begin": 0.01, "end": 1.0, "until": 0.8}   a line, and then `end`
    {"schedule": "cosine", "begin": 0.0, "end": 1.0}              half a cosine over all steps
    {"schedule": "cosine", "begin": 1.0, "end": 0.1, "until": 0.15}   and then `end`
    {"schedule": "warmup_cosine", "peak": 2e-4, "warmup": 0.05, "end_ratio": 1e-3}
    {"schedule": "warmup_halving", "peak": 4e-4, "warmup": 0.02, "half_life": 0.2}
    {"schedule": "cosine_to_zero", "begin": 1.0, "until": 0.12}   half a cosine, and then 0
    {"schedule": "log_cosine", "begin": 1.0, "end": 2.35}         half a cosine of logarithms
    {"schedule": "from", "begin": 0.2, "value": 0.5}              -1 for the first fifth: off
    {"schedule": "package.module:function", ...}                  a function of your own

`at`, `warmup`, `half_life`, `until` and the `begin` of "from" are fractions of `train.num_steps`. A
schedule is a function from the number of steps and keyword-only settings to an `optax.Schedule`,
and checks its settings itself. If it takes `path`, it gets the setting's place in the config, for
messages.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.parts import check_number, check_settings, choose, is_schedule, settings_of

NOMINAL = 10_000  # steps, where a schedule's last value is wanted


def step(num_steps: int, *, path: str, begin: float, end: float, at: float) -> optax.Schedule:
    """Return a schedule: `begin` for the fraction `at` of the steps, then `end`."""
    for key, value in (("begin", begin), ("end", end), ("at", at)):
        check_number(f"{path}.{key}", value)
    return lambda count: jnp.where(count < at * num_steps, begin, end)


def from_(num_steps: int, *, path: str, begin: float, value: Any) -> optax.Schedule:
    """Return a schedule: -1, which means off, for the fraction `begin` of the steps, then `value`.

    Args:
        num_steps: number of steps of the whole training.
        path: path of the setting, for messages.
        begin: when the value begins.
        value: a number or a schedule of all steps.
    """
    check_number(f"{path}.begin", begin, below=1.0)
    if not is_schedule(value):
        check_number(path, value)  # less than 0 would be off
    later = schedule_of(path, value, num_steps)
    return lambda count: jnp.where(count < begin * num_steps, -1.0, later(count))


def linear(
    num_steps: int, *, path: str, begin: float, end: float, until: float = 1.0
) -> optax.Schedule:
    """Return a schedule: a line from `begin` at step 0 to `end` at the fraction `until`."""
    for key, value in (("begin", begin), ("end", end)):
        check_number(f"{path}.{key}", value)
    check_number(f"{path}.until", until, above=True)
    done = lambda count: jnp.minimum(count / (until * num_steps), 1.0)  # noqa: E731
    return lambda count: begin + (end - begin) * done(count)


def cosine(
    num_steps: int, *, path: str, begin: float, end: float, until: float = 1.0
) -> optax.Schedule:
    """Return a schedule: half a cosine from `begin` at step 0 to `end`, and then `end`.

    Args:
        num_steps: number of steps of the whole training.
        path: path of the setting, for messages.
        begin: the value at step 0.
        end: the value at the fraction `until` of the steps, and afterwards.
        until: where the cosine ends, as a fraction of the steps.
    """
    for key, value in (("begin", begin), ("end", end)):
        check_number(f"{path}.{key}", value)
    check_number(f"{path}.until", until, above=True)

    def value_at(count: Int[Array, ""]) -> Array:
        done = jnp.minimum(count / (until * num_steps), 1.0)
        return begin + (end - begin) * 0.5 * (1.0 - jnp.cos(jnp.pi * done))

    return value_at


def log_cosine(num_steps: int, *, path: str, begin: float, end: float) -> optax.Schedule:
    """Return a schedule whose logarithm is half a cosine from `begin` to `end`.

    The sharpness of the draws of VQ-VFM-OCL's tokenizer (arXiv 2502.20263) increases in this way.
    """
    for key, value in (("begin", begin), ("end", end)):
        check_number(f"{path}.{key}", value, above=True)
    of_logs = cosine(num_steps, path=path, begin=0.0, end=1.0)
    return lambda count: begin * (end / begin) ** of_logs(count)


def cosine_to_zero(num_steps: int, *, path: str, begin: float, until: float) -> optax.Schedule:
    """Return a schedule: half a cosine from `begin` to 0 at the fraction `until`, and then 0.

    The noise of BO-QSA's queries (Jia et al. 2023, arXiv 2210.08990) decreases in this way.
    """
    check_number(f"{path}.begin", begin)
    check_number(f"{path}.until", until, above=True)
    last = until * num_steps
    return lambda count: begin * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(count / last, 1.0)))


def warmup_cosine(
    num_steps: int,
    *,
    path: str,
    peak: float,
    warmup: float,
    end_ratio: float,
    ends_at_peak: bool = False,
    begin_ratio: float = 0.0,
) -> optax.Schedule:
    """Return a schedule: a linear warm-up, then a cosine.

    Args:
        num_steps: number of steps of the whole training.
        path: path of the setting, for messages.
        peak: value after the warm-up, which starts at 0.
        warmup: length of the warm-up, as a fraction of the steps.
        end_ratio: final value, relative to `peak`.
        ends_at_peak: whether the last step of the warm-up already has the peak value, so that two
            steps have it, as in the program of SPOT.
        begin_ratio: value at step 0, relative to `peak`; the warm-up starts there.

    Raises:
        UserError: a setting is out of range, or the warm-up leaves no step.
    """
    check_number(f"{path}.peak", peak, above=True)
    check_number(f"{path}.end_ratio", end_ratio)
    check_number(f"{path}.begin_ratio", begin_ratio)
    warmup_steps = _warmup_steps(path, warmup, num_steps)
    whole = optax.warmup_cosine_decay_schedule(
        init_value=begin_ratio * peak,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=num_steps,
        end_value=end_ratio * peak,
    )
    if not ends_at_peak:
        return whole
    first = begin_ratio * peak
    rise = lambda count: first + (peak - first) * count / max(warmup_steps - 1, 1)  # noqa: E731
    return lambda count: jnp.where(count < warmup_steps, rise(count), whole(count))


def warmup_halving(
    num_steps: int,
    *,
    path: str,
    peak: float,
    warmup: float,
    half_life: float,
    from_zero: bool = False,
    starts_above_zero: bool = False,
) -> optax.Schedule:
    """Return a schedule: a linear warm-up, then an exponential decay.

    Args:
        num_steps: number of steps of the whole training.
        path: path of the setting, for messages.
        peak: value after the warm-up, which starts at 0.
        warmup: length of the warm-up, as a fraction of the steps.
        half_life: in which the value halves, as a fraction of the steps.
        from_zero: whether the decay begins at step 0, as in slot attention's and BO-QSA's programs;
            otherwise after the warm-up, as in DINOSAUR's.
        starts_above_zero: whether the first step already has its share of the warm-up, so that step
            n has (n + 1) of them, as in STEVE's program.

    Raises:
        UserError: a setting is out of range, or the warm-up leaves no step.
    """
    check_number(f"{path}.peak", peak, above=True)
    check_number(f"{path}.half_life", half_life, above=True)
    warmup_steps = _warmup_steps(path, warmup, num_steps)
    begin, period = 0 if from_zero else warmup_steps, half_life * num_steps
    ahead = int(starts_above_zero)

    def value_at(count: Int[Array, ""]) -> Array:
        rise = jnp.minimum((count + ahead) / max(warmup_steps, 1), 1.0) if warmup_steps else 1.0
        return peak * rise * 0.5 ** (jnp.maximum(count - begin, 0) / period)

    return value_at


def _warmup_steps(path: str, warmup: float, num_steps: int) -> int:
    check_number(f"{path}.warmup", warmup, below=1.0)
    if round(warmup * num_steps) >= num_steps:
        raise UserError(
            f"{path}.warmup is {warmup}, which leaves no step of {num_steps} after the warm-up; "
            "lower it or raise train.num_steps"
        )
    return round(warmup * num_steps)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "step": step,
    "linear": linear,
    "from": from_,
    "cosine": cosine,
    "cosine_to_zero": cosine_to_zero,
    "log_cosine": log_cosine,
    "warmup_cosine": warmup_cosine,
    "warmup_halving": warmup_halving,
}


def schedule_of(path: str, value: Any, num_steps: int) -> optax.Schedule:
    """Return a value of a config as a function of the step.

    Args:
        path: path of the setting, for messages.
        value: a number, or a schedule as above.
        num_steps: number of steps of the whole training.

    Raises:
        UserError: the value is neither, or the schedule's settings are not valid.
    """
    if isinstance(value, bool) or not (isinstance(value, int | float) or is_schedule(value)):
        found = value.to_dict() if hasattr(value, "to_dict") else value
        raise UserError(
            f"{path} is {found!r}; expected a number or a schedule, a dictionary with the key "
            f"'schedule' ({', '.join(SCHEDULES)}); correct --config.{path}"
        )
    if not is_schedule(value):
        return optax.constant_schedule(value)
    name = value["schedule"]
    function = choose(path, name, SCHEDULES, key="schedule")
    settings = {key: setting for key, setting in value.items() if key != "schedule"}
    takes, given = settings_of(function), {"path": path}
    optional = {key: x.default is not x.empty for key, x in takes.items() if key not in given}
    check_settings(path, f"{path}.schedule={name!r}", settings, optional)
    given = {key: x for key, x in given.items() if key in takes}
    return function(num_steps, **settings, **given)


def last_values(path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of settings at the last step of a training, however long it is.

    Args:
        path: of the group of settings, for messages.
        settings: setting -> a number or a schedule.
    """
    values = {key: schedule_of(f"{path}.{key}", x, NOMINAL) for key, x in settings.items()}
    return {key: float(value(NOMINAL)) for key, value in values.items()}


class Schedules:
    """All values of a config that may change with the step.

    Args:
        settings: part -> setting -> a number or a schedule, of each group, such as the losses.
        num_steps: number of steps of the whole training.

    Raises:
        UserError: a value is neither, or a schedule's settings are not valid.
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Mapping[str, Any]]], num_steps: int):
        def prepared(path: str, value: Any) -> Any:
            schedule = schedule_of(path, value, num_steps)
            return schedule if is_schedule(value) else value

        self._tree = {
            group: {
                part: {key: prepared(f"{group}.{part}.{key}", x) for key, x in values.items()}
                for part, values in parts.items()
            }
            for group, parts in settings.items()
        }

    def at(self, count: Int[Array, ""]) -> dict[str, Any]:
        """Return the tree with the values at a step; constants stay Python numbers."""
        return jax.tree.map(lambda x: x(count) if callable(x) else x, self._tree)
