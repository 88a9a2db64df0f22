"""Configs: load a file with its words, and read overrides from the command line.

A config is an `ml_collections.ConfigDict` returned by `get_config(words)` of a Python file.
Sequences in it are tuples, so that it equals itself after a trip through JSON.
"""

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from smoothsa_jax.checkout import ROOT as CONFIGS_PARENT
from smoothsa_jax.config.schema import check_keys, may_be_none, nearest
from smoothsa_jax.config.values import canonical, flatten
from smoothsa_jax.config.words import refuse_unknown, split_words
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.parts import is_schedule

# ----------------------------------------------------------------------------- files and words


def load_config(spec: str) -> ConfigDict:
    """Load `path/to/config.py` or `path/to/config.py:word,word`, or a recipe such as `coco:spot`.

    A module attribute `WORDS` or `VARIANTS`, if there is one, lists the words that the file takes.

    Raises:
        UserError: no such file (the nearest is suggested), a word that does not fit, a file that
            fails when it runs, or a config with a key that nothing reads.
    """
    path_text, _, words = located(spec).partition(":")
    path = Path(path_text)
    if not path.is_file():
        raise UserError(f"config file {path_text!r} does not exist; {_nearby_files(path)}")
    module = _run_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(
            f"config file {path_text} has no get_config(words) function; "
            "add one that returns a ConfigDict"
        )
    known = _known_words(module)
    try:
        if known is not None:
            refuse_unknown(split_words(words), known)
        config = module.get_config(words) if words else module.get_config()
    except UserError as error:
        raise UserError(f"config {spec}: {error}") from error
    except (Exception, SystemExit) as error:  # a file may raise anything; the message names it
        raise UserError(f"config {spec} cannot be made: {_one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config {spec}: get_config returned {type(config).__name__}, "
            "expected ml_collections.ConfigDict"
        )
    config = canonical(config)
    try:
        check_keys(config)
    except UserError as error:
        raise UserError(f"config {spec}: {error}") from error
    return config


def located(given: str) -> str:
    """Return a config's file and words, such as "configs/coco.py:spot" of the recipe "coco:spot".

    Args:
        given: the name of a recipe, or the path of a file, which ends in .py; then any words. As in
            a checkout, "configs/coco.py" is the recipe `coco` where there is no such file.

    Raises:
        UserError: it is neither; the nearest name is suggested.
    """
    name, colon, words = given.partition(":")
    folder = CONFIGS_PARENT / "configs"
    if name.endswith(".py") or Path(name).is_file():
        shipped = not Path(name).is_file() and (CONFIGS_PARENT / name).is_file()
        return f"{CONFIGS_PARENT / given}" if shipped and name.startswith("configs/") else given
    names = sorted(x.stem for x in folder.glob("*.py") if "def get_config" in x.read_text())
    if name not in names:
        raise UserError(
            f"--config={given}: found {name!r}, expected a file that ends in .py or one of "
            f"{', '.join(names)}{did_you_mean(name, names)}"
        )
    return f"{folder / name}.py{colon}{words}"


def known_words(path: Path) -> tuple[str, ...]:
    """Return the words that a config file takes, as it lists them itself."""
    return tuple(_known_words(_run_file(path)) or ())


def _known_words(module: ModuleType) -> Iterable[str] | None:
    return getattr(module, "WORDS", getattr(module, "VARIANTS", None))


def _run_file(path: Path) -> ModuleType:
    # A config may share parts with its neighbors: `from configs import ...`.
    for root in (str(path.resolve().parent.parent), str(CONFIGS_PARENT)):
        if root not in sys.path:
            sys.path.append(root)
            importlib.invalidate_caches()
    name = f"_config_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(
            f"config file {path} is not a Python file; expected a name that ends in .py"
        )
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"config file {path} cannot be run: {_one_line(error)}") from error
    return module


def _nearby_files(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    files = sorted(folder.glob("*.py")) if folder.is_dir() else []
    names = [file.name for file in files if "def get_config" in file.read_text(errors="replace")]
    if not names:
        return "give the path of a Python file with a get_config function"
    return f"{folder} has {', '.join(names)}{did_you_mean(path.name, names)}"


# -------------------------------------------------------------------------------- command line


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
                "--config was given without a value; expected a recipe such as sprites, or a "
                "config file such as my/config.py"
            )
        mine.append((name, value))
    return mine, others


def config_from_command_line(arguments: Overrides, default: str | ConfigDict) -> ConfigDict:
    """The config that a command line asks for.

    Args:
        arguments: the config's share, from `split_command_line`.
        default: what overrides apply to when `--config` is not given: a config file, or a config
            (a checkpoint's).

    Raises:
        UserError: unknown file, word or key (the nearest is suggested), or a value of another type.
    """
    spec = next((value for name, value in arguments if name == "config"), default)
    base = load_config(spec) if isinstance(spec, str) else canonical(spec)
    overrides = [(name, value) for name, value in arguments if name != "config"]
    flat = flatten(base)
    for name, _ in overrides:
        _check_key(_key_of(name), base, flat)
    base, overrides = _set_optional(base, overrides)
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


def _key_of(name: str) -> str:
    """`train.num_steps` of a flag `config.train.num_steps` or `noconfig.train.num_steps`."""
    return re.sub(r"\[.*?\]", "", name.split("config.", 1)[1])


def _set_optional(base: ConfigDict, overrides: Overrides) -> tuple[ConfigDict, Overrides]:
    """Apply the overrides of settings that may be None, which absl's flags cannot express.

    Returns:
        The config with them, and the other overrides.
    """
    base, others = base.copy_and_resolve_references(), []
    flat = flatten(base)
    for name, text in overrides:
        key = _key_of(name)
        if not may_be_none(key) and flat[key] is not None:
            others.append((name, text))
            continue
        group, _, last = key.rpartition(".")
        target = base
        for part in filter(None, group.split(".")):
            target = target[part]
        with target.ignore_type():
            target[last] = _literal(text)
    return base, others


def _literal(text: str | None) -> Any:
    """Parse a number, a tuple, True, None, ...; any other text stays text."""
    try:
        return ast.literal_eval(str(text))
    except (ValueError, SyntaxError):
        return None if str(text).lower() == "none" else text


def _check_key(key: str, config: ConfigDict, flat: Mapping[str, Any]) -> None:
    if key in flat:
        return
    group: Any = config
    for part in key.split("."):
        group = group.get(part) if isinstance(group, ConfigDict) else None
    if not isinstance(group, ConfigDict):
        raise UserError(
            f"--config.{key}: the config has no key {key!r}; the nearest is {nearest(key, flat)!r}"
        )
    if is_schedule(group):
        inside = next(name for name in ("peak", "begin", "schedule") if name in group)
        raise UserError(
            f"--config.{key} is a schedule, not a number; set one of its keys, such as "
            f"--config.{key}.{inside}"
        )
    inside = [full for full in flat if full.startswith(f"{key}.")]
    such_as = f"set one of its keys, such as --config.{inside[0]}" if inside else "it is empty"
    raise UserError(f"--config.{key} is a group of settings, not a setting; {such_as}")


def _explain(error: Exception, flat: Mapping[str, Any]) -> str:
    text = _one_line(error)
    match = re.search(r"flag --(?:no)?config\.([^=:]+)=(.*?): ", str(error), flags=re.DOTALL)
    key = match.group(1) if match else None
    if key in flat:
        kind = type(flat[key]).__name__
        return (
            f"--config.{key}={match.group(2)}: found a value that is no {kind}; "
            f"expected {kind}, as in {flat[key]!r}"
        )
    return f"overrides of the config cannot be read: {text}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
