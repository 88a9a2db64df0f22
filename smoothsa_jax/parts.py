"""From a name in a config to an object: the classes of a kind, their settings, their schedules."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from smoothsa_jax.errors import UserError, did_you_mean

Table = Mapping[str, Callable | None]


def choose(path: str, name: str, table: Table) -> Callable | None:
    """Return the class that a config names.

    Args:
        path: of the config's part, for messages, such as "model.decoder".
        name: a key of the table, or "package.module:Class" for a class from elsewhere.
        table: the classes that the package has.

    Raises:
        UserError: there is no such class; lists the names there are.
    """
    if isinstance(name, str) and ":" in name:
        return _imported(path, name)
    if name not in table:
        raise UserError(
            f"{path}.name is {name!r}; expected one of {', '.join(sorted(table))}, or "
            f'"package.module:Class" for a class of your own{did_you_mean(name, table)}'
        )
    return table[name]


def _imported(path: str, name: str) -> Callable:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{path}.name is {name!r}, which cannot be imported ({error}); expected "
            '"package.module:Class" of a module on the Python path'
        ) from error
    if not callable(found):
        raise UserError(f"{path}.name is {name!r}, which is no class; name a class")
    return found


def make(path: str, config: Mapping[str, Any], table: Table, *sizes: Any, **given: Any) -> Any:
    """Make an object of the class that `config["name"]` chooses, from its other keys.

    A setting that is itself a part (a mapping with a `name`) is made first, with the same sizes.
    Settings that the class lists as `scheduled` are values of a step, and left out here.

    Args:
        path: of the config's part, for messages.
        config: the part's settings.
        table: the classes that the package has.
        *sizes: what the class takes by position.
        **given: what the class takes by keyword beside its settings, such as `rngs`.

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
    takes = [name for name in parameters if name not in given]
    what = f"{path}.name={config['name']!r}"
    for key in settings:
        if key not in takes and key not in scheduled:
            expected = ", ".join([*takes, *scheduled]) or "none"
            raise UserError(
                f"{path}.{key} is no setting of {what}: expected among {expected}"
                f"{did_you_mean(key, [*takes, *scheduled])}; remove or rename it"
            )
    for key in (*takes, *scheduled):
        needed = key in scheduled or parameters[key].default is inspect.Parameter.empty
        if needed and key not in settings:
            raise UserError(f"{what} needs {path}.{key}: add it to the config file")
    made = {}
    for key, value in settings.items():
        if key in scheduled:
            continue
        is_part = isinstance(value, Mapping) or hasattr(value, "to_dict")
        made[key] = make(f"{path}.{key}", value, table, *sizes, **given) if is_part else value
    accepted = {key: value for key, value in given.items() if key in parameters}
    return chosen(*sizes, **made, **accepted)


def scheduled_settings(path: str, config: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """Return the settings of a part, and of the parts inside it, that change with the step."""
    chosen = choose(path, config.get("name"), table)
    found = {key: config[key] for key in getattr(chosen, "scheduled", ()) if key in config}
    for key, value in config.items():
        if key not in found and (isinstance(value, Mapping) or hasattr(value, "to_dict")):
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
                f"{path}.{key} is no setting of {path}.name={config['name']!r}, which has none; "
                "remove it"
            )


# ------------------------------------------------------------------------- ranges of settings


def check_whole(key: str, value: Any, least: int = 1) -> None:
    """Refuse a setting that is not a whole number of at least `least`.

    Raises:
        UserError: names the key of the config, such as "model.aggregator.first".
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(
            f"{key} is {value!r}; expected a whole number of at least {least}; "
            f"set --config.{key}={max(least, 1)} or more"
        )


def check_heads(key: str, value: Any, size: int, what: str) -> None:
    """Refuse a number of heads that does not cut `what`, a width of `size`, into equal parts."""
    check_whole(key, value)
    if size % value:
        raise UserError(f"{key} is {value}, which does not divide {what}; choose a divisor")


def check_dropout(key: str, value: Any) -> None:
    """Refuse a rate of dropout that is not a number of at least 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise UserError(
            f"{key} is {value!r}; expected a number of at least 0 and below 1; change "
            f"--config.{key}"
        )


def check_above_zero(key: str, value: Any) -> None:
    """Refuse a setting that is not a number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{key} is {value!r}; expected a number above 0; change --config.{key}")
