"""Configs: load a file with its variant, read overrides, compare two, keep one as JSON.

A config is an `ml_collections.ConfigDict` returned by `get_config(variant)` of a Python file. Sequences in it are
tuples, so that it equals itself after a trip through JSON.
"""

import difflib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from smoothsa_jax.config.values import canonical, flatten
from smoothsa_jax.errors import UserError, did_you_mean

# ---------------------------------------------------------------------------------------------- files and variants


def load_config(spec: str) -> ConfigDict:
    """Load `path/to/config.py` or `path/to/config.py:variant`.

    Raises:
      UserError: no such file (nearest name suggested), no such variant, or the file fails when run.
    """
    path_text, _, variant = spec.partition(":")
    path = Path(path_text)
    if not path.is_file():
        raise UserError(f"config file {path_text!r} does not exist; {_nearby_files(path)}")
    module = _run_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(
            f"config file {path_text} has no get_config(variant) function; add one that returns a ConfigDict"
        )
    variants = tuple(getattr(module, "VARIANTS", ()))
    if variant and variants and variant not in variants:
        hint = did_you_mean(variant, variants)
        raise UserError(
            f"config {path_text} has no variant {variant!r}; it has {', '.join(filter(None, variants))}{hint}"
        )
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except Exception as error:  # whatever a config file raises, its user needs the file, the variant and the reason
        raise UserError(f"config {spec} cannot be made: {_one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config {spec}: get_config returned {type(config).__name__}, expected ml_collections.ConfigDict"
        )
    return canonical(config)


def _run_file(path: Path):
    root = str(path.resolve().parent.parent)
    if (
        root not in sys.path
    ):  # a config may share parts with its neighbours: `from configs import ...`
        sys.path.append(root)
    name = f"_config_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(
            f"config file {path} is not a Python file; expected a name that ends in .py"
        )
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"config file {path} cannot be run: {_one_line(error)}") from error
    return module


def _nearby_files(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    names = sorted(p.name for p in folder.glob("*.py")) if folder.is_dir() else []
    if not names:
        return "give the path of a Python file with a get_config function"
    return f"{folder} has {', '.join(names)}{did_you_mean(path.name, names)}"


# -------------------------------------------------------------------------------------------------- command line


Overrides = Sequence[tuple[str, str | None]]


def split_command_line(arguments: Sequence[str]) -> tuple[Overrides, list[str]]:
    """Pairs (name, value) of `--config` and `--config.key` arguments, and the other arguments.

    `--key=value`, `--key value` and, for booleans, `--key` and `--noconfig.key` all count.

    Raises:
      UserError: `--config` without a value.
    """
    mine: list[tuple[str, str | None]] = []
    others: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        match = re.match(r"^--?(config|(?:no)?config\.[^=]+)(?:=(.*))?$", argument, flags=re.DOTALL)
        if match is None:
            others.append(argument)
            continue
        name, value = match.group(1), match.group(2)
        if value is None and waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
        if name == "config" and not value:
            raise UserError(
                "--config was given without a value; expected a config file such as configs/sprites.py"
            )
        mine.append((name, value))
    return mine, others


def config_from_command_line(arguments: Overrides, default: str | ConfigDict) -> ConfigDict:
    """The config that a command line asks for.

    Args:
      arguments: the config's share, from `split_command_line`.
      default: what overrides apply to when `--config` is not given: a config file, or a config (a checkpoint's).

    Raises:
      UserError: unknown file, variant or key (nearest key suggested), or a value of another type.
    """
    spec = next((value for name, value in arguments if name == "config"), default)
    base = load_config(spec) if isinstance(spec, str) else canonical(spec)
    overrides = [(name, value) for name, value in arguments if name != "config"]
    flat = flatten(base)
    for name, _ in overrides:
        _check_key(re.sub(r"\[.*?\]", "", name.split("config.", 1)[1]), flat)
    words = ["main.py"] + [
        f"--{name}" if value is None else f"--{name}={value}" for name, value in overrides
    ]
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict("config", base, flag_values=values, sys_argv=words)
        values(words)
    except (flags.Error, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise UserError(_explain(error, flat)) from error
    return canonical(holder.value)


def _check_key(key: str, flat: Mapping[str, Any]) -> None:
    groups = {
        ".".join(full.split(".")[:depth])
        for full in flat
        for depth in range(1, full.count(".") + 1)
    }
    if key in flat:
        return
    if key in groups:
        inside = [full for full in flat if full.startswith(key + ".")]
        raise UserError(
            f"--config.{key} is a group of settings, not a setting; set one of its keys, such as --config.{inside[0]}"
        )
    same_name = [full for full in flat if full.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = difflib.get_close_matches(key, list(flat), n=1, cutoff=0.0)
    nearest = same_name[0] if len(same_name) == 1 else near[0]
    raise UserError(f"--config.{key}: the config has no key {key!r}; the nearest is {nearest!r}")


def _explain(error: Exception, flat: Mapping[str, Any]) -> str:
    text = _one_line(error)
    match = re.search(r"flag --(?:no)?config\.([^=:]+)=(.*?): ", str(error), flags=re.DOTALL)
    key = match.group(1) if match else None
    if key in flat:
        kind = type(flat[key]).__name__
        return f"--config.{key}={match.group(2)}: found a value that is no {kind}; expected {kind}, as in {flat[key]!r}"
    return f"overrides of the config cannot be read: {text}"


# ------------------------------------------------------------------------------------------- compare, keep, restore


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
