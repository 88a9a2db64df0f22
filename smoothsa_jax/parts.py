"""From a name in a config to an object: the classes of a kind, their settings, their schedules."""

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from smoothsa_jax.errors import UserError, did_you_mean

Table = Mapping[str, Callable | None]
LARGEST = 2**63 - 1  # whole number, as JAX takes seeds
# Of pruning at inference; see `models.pruning.Prune`.
AUTO_PRUNE = "auto"
PRUNE_RESTARTS = ("slots", "queries", "none", "merge")
PRUNE_VIDEOS = ("fixed", "renewed")


def is_schedule(value: Any) -> bool:
    """Tell whether a config's value is a schedule, and not a number or a group of settings."""
    return _is_group(value) and "schedule" in value


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "to_dict")


def choose(path: str, name: str, table: Table, key: str = "name") -> Callable | None:
    """Return the class that a config names.

    Args:
        path: of the config's part, for messages, such as "model.decoder".
        name: a key of the table, or "package.module:Class" for a class from elsewhere.
        table: the classes that the package has.
        key: the setting of the part that has the name, for messages.

    Raises:
        UserError: there is no such class; lists the names there are.
    """
    if isinstance(name, str) and ":" in name:
        return _imported(f"{path}.{key}", name)
    if name not in table:
        raise UserError(
            f"{path}.{key} is {name!r}; expected one of {', '.join(sorted(table))}, or "
            f'"package.module:Class" for a class of your own{did_you_mean(name, table)}'
        )
    return table[name]


def _imported(key: str, name: str) -> Callable:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{key} is {name!r}, which cannot be imported ({error}); expected "
            '"package.module:Class" of a module on the Python path'
        ) from error
    if not callable(found):
        raise UserError(f"{key} is {name!r}, which is not a class; name a class")
    return found


def make(path: str, config: Mapping[str, Any], table: Table, *sizes: Any, **given: Any) -> Any:
    """Make an object of the class that `config["name"]` chooses, from its other keys.

    A setting that is itself a part (a mapping with a `name`) is made first, with the same sizes.
    One that the class lists in `groups` is a group of settings, and handed over as it is.
    Settings that the class lists as `scheduled` are values of a step, and left out here.

    Args:
        path: of the config's part, for messages.
        config: the part's settings.
        table: the classes that the package has.
        *sizes: what the class takes by position.
        **given: what the class takes by keyword besides its settings, such as `rngs`.

    Returns:
        None where the table's entry is None.

    Raises:
        UserError: an unknown name, a setting that the class does not take, or one that it lacks.
    """
    chosen = choose(path, config.get("name"), table)
    if chosen is None:
        _refuse_settings(path, config)
        return None
    settings = {key: value for key, value in config.items() if key != "name"}
    parameters, scheduled = settings_of(chosen), getattr(chosen, "scheduled", ())
    takes = {name: x for name, x in parameters.items() if name not in given}
    optional = {name: x.default is not inspect.Parameter.empty for name, x in takes.items()}
    optional |= dict.fromkeys(scheduled, False)
    check_settings(path, f"{path}.name={config['name']!r}", settings, optional)
    made = {}
    for key, value in settings.items():
        if key in scheduled:
            continue
        if is_schedule(value):
            raise UserError(
                f"{path}.{key} is a schedule, but it cannot change with the step; give one value"
            )
        is_part = _is_group(value) and key not in getattr(chosen, "groups", ())
        made[key] = make(f"{path}.{key}", value, table, *sizes, **given) if is_part else value
    accepted = {key: value for key, value in given.items() if key in parameters}
    return chosen(*sizes, **made, **accepted)


def check_settings(
    path: str, what: str, settings: Iterable[str], optional: Mapping[str, bool]
) -> None:
    """Refuse unknown settings and missing ones.

    Args:
        path: of the settings' group, for messages.
        what: takes the settings, such as "model.decoder.name='random_ar'".
        settings: names of the settings that the config has.
        optional: name -> whether it may be left out, of the settings that are taken.

    Raises:
        UserError: names the first such setting.
    """
    for key in settings:
        if key not in optional:
            raise UserError(
                f"{path}.{key} is not a setting of {what}: expected among "
                f"{', '.join(optional) or 'none'}{did_you_mean(key, optional)}; remove or rename it"
            )
    for key, may_lack in optional.items():
        if not may_lack and key not in settings:
            raise UserError(f"{what} needs {path}.{key}: add it to the config file")


def scheduled_settings(path: str, config: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """Return the settings of a part, and of the parts inside it, that change with the step.

    A class whose schedules depend on several settings has a static method `schedules` of them.
    """
    chosen = choose(path, config.get("name"), table)
    found = {key: config[key] for key in getattr(chosen, "scheduled", ()) if key in config}
    if hasattr(chosen, "schedules"):
        found = chosen.schedules(config)
    groups = getattr(chosen, "groups", ())
    for key, value in config.items():
        if key in groups:
            continue
        if key not in found and _is_group(value) and not is_schedule(value):
            found = {**scheduled_settings(f"{path}.{key}", value, table), **found}
    return found


@functools.cache
def settings_of(chosen: Callable) -> dict[str, inspect.Parameter]:
    """Return what a class takes by keyword only, by name."""
    function = chosen.__init__ if inspect.isclass(chosen) else chosen
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if p.kind == inspect.Parameter.KEYWORD_ONLY}


def _refuse_settings(path: str, config: Mapping[str, Any]) -> None:
    for key in config:
        if key != "name":
            raise UserError(
                f"{path}.{key} is not a setting of {path}.name={config['name']!r}, which has none; "
                "remove it"
            )


# ------------------------------------------------------------------------- ranges of settings


def check_whole(key: str, value: Any, least: int = 1) -> None:
    """Refuse a setting that is not a whole number of at least `least`, or needs over 64 bits.

    Raises:
        UserError: names the key of the config, such as "model.aggregator.first".
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(
            f"{key} is {value!r}; expected a whole number of at least {least}; "
            f"set --config.{key}={max(least, 1)} or more"
        )
    if value > LARGEST:
        raise UserError(f"{key} is {value}; expected at most {LARGEST}; set a smaller number")


def check_heads(key: str, value: Any, size: int, what: str) -> None:
    """Refuse a number of heads that does not divide `what`, a width of `size`."""
    check_whole(key, value)
    if size % value:
        raise UserError(f"{key} is {value}, which does not divide {what}; choose a divisor")


def check_number(
    key: str, value: Any, least: float = 0.0, above: bool = False, below: float | None = None
) -> None:
    """Refuse a setting that is not a number of at least (or `above`) `least`, and below `below`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    in_range = is_number and (value > least if above else value >= least)  # false for NaN
    if not in_range or not (below is None or value < below):
        bound = f" above {least:g}" if above else f" of at least {least:g}"
        bound = "" if least == -math.inf else bound
        also = "" if below is None else f" and below {below:g}"
        raise UserError(
            f"{key} is {value!r}; expected a number{bound}{also}; change --config.{key}"
        )


def check_one_of(key: str, value: Any, names: Iterable[str]) -> None:
    """Refuse a setting that is not one of these names."""
    if value not in names:
        expected = sorted(str(name) for name in names)
        raise UserError(
            f"{key} is {value!r}; expected one of {', '.join(expected)}"
            f"{did_you_mean(value, expected)}"
        )


def check_flag(key: str, value: Any) -> None:
    """Refuse a setting that is not True or False."""
    if not isinstance(value, bool):
        raise UserError(f"{key} is {value!r}; expected True or False; change --config.{key}")


def check_dropout(key: str, value: Any) -> None:
    """Refuse a rate of dropout that is not a number of at least 0 and below 1."""
    check_number(key, value, below=1.0)


def check_above_zero(key: str, value: Any) -> None:
    """Refuse a setting that is not a number above 0."""
    check_number(key, value, above=True)


def check_prune(key: str, value: Any) -> None:
    """Refuse a distance of pruning that is neither "auto" nor a number from 0 to 2."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != AUTO_PRUNE and not (is_number and 0.0 <= value <= 2.0):
        raise UserError(
            f"{key} is {value!r}; expected a cosine distance from 0 (only copies are pruned) to 2 "
            f"(one slot stays), or {AUTO_PRUNE!r}; try 0.5"
        )


def check_iterations(key: str, value: Any) -> None:
    """Refuse what is neither a number of iterations nor two, of first and of later frames."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    for number in value if is_pair else [value]:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= LARGEST:
            raise UserError(
                f"{key} is {value!r}; expected a whole number of at least 1, of iterations on each "
                "frame, or two, for the first frame and for later ones, such as (6, 2)"
            )
