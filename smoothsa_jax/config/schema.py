"""The closed contract of a config: which keys there are, and which values they take.

Every key belongs either to this file or, inside `data`, `model` and `losses`, to the constructor
that receives it. Any other key is refused, in a config file as on the command line.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.config.values import flatten
from smoothsa_jax.devices.mesh_shape import mesh_shape
from smoothsa_jax.errors import UserError
from smoothsa_jax.parts import (
    LARGEST,
    PRUNE_RESTARTS,
    PRUNE_VIDEOS,
    check_flag,
    check_iterations,
    check_number,
    check_one_of,
    check_prune,
    check_whole,
    is_schedule,
)

DTYPES = ("bfloat16", "float32")  # in which a model may compute
MATMUL_PRECISIONS = ("default", "high", "highest")  # JAX's names, of float32 matrix products
REMATS = ("none", "recurrence", "decoder", "all")
SPLITS = ("train", "validation", "test")
BATCHES = ("train.batch_size", "eval.batch_size")
WINDOW_RESTS = ("back", "drop", "keep")

_GROUP = ConfigDict | Mapping
# Refuses a value in one line: (key, value) -> None.
Check = Callable[[str, Any], None]


# ---------------------------------------------------------------------------------------- values


def whole(least: int) -> Check:
    """A whole number of at least `least`."""

    def check(key: str, value: Any) -> None:
        check_whole(key, value, least)

    return check


def number(least: float = 0.0, above: bool = False, below: float | None = None) -> Check:
    """A number of at least (or `above`) `least`, and below `below`."""

    def check(key: str, value: Any) -> None:
        check_number(key, value, least, above, below)

    return check


def one_of(*names: str) -> Check:
    def check(key: str, value: Any) -> None:
        check_one_of(key, value, names)

    return check


def none_or(check: Check) -> Check:
    """None, or what another check accepts."""

    def check_unless_none(key: str, value: Any) -> None:
        if value is not None:
            check(key, value)

    check_unless_none.may_be_none = True
    return check_unless_none


def flag(key: str, value: Any) -> None:
    check_flag(key, value)


def text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"{key} is {value!r}; expected text; change --config.{key}")


def texts(key: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        raise UserError(f'{key} is {value!r}; expected a tuple of texts, such as ("*",)')


def folder_name(key: str, value: Any) -> None:
    if not re.fullmatch(r"[\w.\-]+", str(value)):
        raise UserError(
            f"{key} is {value!r}; expected letters, digits, '_', '-' or '.', "
            "since it names a folder"
        )


def seeds(key: str, value: Any) -> None:
    good = (
        isinstance(value, tuple)
        and value
        and all(isinstance(s, int) and not isinstance(s, bool) and 0 <= s <= LARGEST for s in value)
    )
    if not good:
        raise UserError(
            f"{key} is {value!r}; expected whole numbers from 0 to {LARGEST}; "
            f'write --config.{key}="(0, 1, 2)"'
        )


def anything(key: str, value: Any) -> None:
    """Checked elsewhere."""


# ------------------------------------------------------------------------------------- schedules


def number_or_schedule(least: float = 0.0, above: bool = False) -> Check:
    """A number, or a schedule, whose settings `smoothsa_jax.schedules` checks."""
    constant = number(least, above)

    def check(key: str, value: Any) -> None:
        if not isinstance(value, _GROUP):
            constant(key, value)
        elif not is_schedule(value):
            raise UserError(
                f"{key} has no key 'schedule'; expected a number, or a schedule such as "
                '{"schedule": "cosine", "begin": 0.0, "end": 1.0}'
            )

    check.may_be_schedule = True
    return check


_RATE = {"of": texts, "learning_rate": number_or_schedule(above=True)}


def rates(key: str, value: Any) -> None:
    """A group of entries, each with patterns of arrays and their learning rate."""
    if not isinstance(value, _GROUP):
        raise UserError(f"{key} is {value!r}; expected a group of entries, which may be empty")
    for name, entry in value.items():
        path = f"{key}.{name}"
        _check_entry(path, entry, _RATE)
        for setting, check in _RATE.items():
            if setting not in entry:
                raise UserError(f"the config has no {path}.{setting}; add it")
            check(f"{path}.{setting}", entry[setting])


rates.may_be_schedule = True  # it is a group of settings
# ------------------------------------------------------------------------------------------ keys

# Every key of a run but what stands inside `data`, `model`, `losses`, `companions` and `weights`.
KEYS: dict[str, Check] = {
    "name": folder_name,
    "title": text,
    "task": text,
    "seed": whole(0),
    "dtype": one_of(*DTYPES),
    "matmul_precision": one_of(*MATMUL_PRECISIONS),
    "optimizer.learning_rate": number_or_schedule(above=True),
    "optimizer.rates": rates,
    "optimizer.clip_norm": number(),
    "optimizer.clip_by": one_of("norm", "largest"),
    "train.num_steps": whole(1),
    "train.batch_size": whole(1),
    "train.accumulate": whole(1),
    "train.num_threads": whole(1),
    "train.num_workers": whole(0),
    "train.remat": one_of(*REMATS),
    "train.scan_unroll": whole(0),
    "train.match_paper": flag,
    "train.xla_flags": text,
    "log.every": whole(1),
    "log.wandb": none_or(folder_name),  # a project of Weights & Biases; None: not sent
    "eval.split": one_of(*SPLITS),
    "eval.num_samples": none_or(whole(1)),  # None: all
    "eval.num_frames": none_or(anything),  # see `check` and `tasks.checks`
    "eval.windows": none_or(whole(1)),  # None: videos are not cut
    "eval.window_rest": one_of(*WINDOW_RESTS),
    "eval.num_slots": none_or(whole(1)),  # None: as in training
    "eval.iterations": none_or(check_iterations),  # None: as in training
    "eval.prune": none_or(check_prune),
    "eval.prune_restart": one_of(*PRUNE_RESTARTS),
    "eval.prune_iterations": whole(1),
    "eval.prune_video": one_of(*PRUNE_VIDEOS),
    "eval.batch_size": whole(1),
    "eval.seeds": seeds,
    "eval.masks": one_of("decoder", "aggregator"),
    "eval.score_at": none_or(whole(1)),  # None: the size of the labels
    "eval.per_frame": flag,
    "eval.foreground": flag,
    "eval.skip_frames": whole(0),
    "eval.count_segments": flag,
    "eval.observed": none_or(whole(1)),  # None: as many as the rollouter needs
    "eval.lpips": text,  # a folder; "": not scored
    "eval.match_paper": flag,
    "eval.background_column_always": flag,
    "eval.baselines": flag,
    "eval.num_pictures": whole(0),
    "eval.validation_samples": whole(1),
    "eval.checkpoint": one_of("latest", "best"),
    "checkpoint.every": whole(1),
    "checkpoint.max_to_keep": whole(1),
    "checkpoint.best_metric": none_or(text),  # None: no best
    "checkpoint.best_mode": one_of("min", "max"),
    "mesh.data": anything,  # see `mesh_shape`
    "mesh.fsdp": anything,
}
# Of an entry of `companions`: an earlier run (the program adds its title and model), or an average.
COMPANION: dict[str, Check] = {
    "source": none_or(text),  # None: it is left out
    "draws": one_of("evaluation", "training"),  # how it draws random numbers in a training step
    "average_of": text,
    "decay": number(below=1.0),
    "title": text,
    "model": anything,
}
# Of an entry of `weights`: where arrays come from, where they go, and which of them are frozen.
# Entries apply in this order: the shorter `into` first, then by name, so that a part replaces what
# the whole model has set. Their order in the file does not count.
WEIGHTS: dict[str, Check] = {
    "into": text,
    "source": text,
    "seed": whole(0),  # of random values
    "without": texts,
    "frozen": texts,
}
ENTRIES = {"companions": COMPANION, "weights": WEIGHTS}
GROUPS = {key.split(".")[0] for key in KEYS if "." in key}
OPEN = ("data", "model", "losses")  # their insides belong to constructors


def may_be_none(key: str) -> bool:
    return hasattr(KEYS.get(key), "may_be_none")


def nearest(key: str, keys: Iterable[str]) -> str:
    """The key that was probably meant: one of the same last name, or the most similar.

    Of several with that name, it is the only one of the model, if there is one.
    """
    keys = list(keys)
    same_name = [full for full in keys if full.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    if len(same_name) > 1:
        same_name = [full for full in same_name if full.startswith("model.")]
    return same_name[0] if len(same_name) == 1 else difflib.get_close_matches(key, keys, 1, 0.0)[0]


def check_keys(config: ConfigDict) -> None:
    """Refuse a config with a key that nothing reads, or without one that a run needs.

    Values are not looked at, nor is the inside of `data`, of parts and of losses.

    Raises:
        UserError: the first such key, and the nearest one that there is.
    """
    for name, value in config.items():
        if name in (*GROUPS, *ENTRIES, *OPEN) and not isinstance(value, _GROUP):
            raise UserError(f"{name} is {value!r}; expected a group of settings, a dictionary")
        if name in GROUPS:
            for key in value:
                _check_setting(config, f"{name}.{key}", value[key])
        elif name not in (*ENTRIES, *OPEN):
            _check_setting(config, name, value)
    present = {f"{name}.{key}" for name in GROUPS & set(config) for key in config[name]}
    for key in (*KEYS, *ENTRIES, *OPEN):
        if key not in present and key not in config:
            raise UserError(f"the config has no {key}; add it to the config file")
    for group, keys in ENTRIES.items():
        for name, entry in config[group].items():
            _check_entry(f"{group}.{name}", entry, keys)
    for name, companion in config.companions.items():
        _check_companion(f"companions.{name}", companion)
    for name, entry in config.weights.items():
        for key in ("into", "source"):
            if key not in entry:
                raise UserError(f"the config has no weights.{name}.{key}; add it")
    _check_parts(config.model)


def _check_setting(config: ConfigDict, key: str, value: Any) -> None:
    if key not in KEYS:
        inside = [full for full in flatten(config) if full.split(".")[0] in (*ENTRIES, *OPEN)]
        _refuse(key, [*KEYS, *ENTRIES, *OPEN, *inside])
    if not isinstance(value, _GROUP):
        return
    if not hasattr(KEYS[key], "may_be_schedule"):
        inside = next(iter(value), "")
        _refuse(f"{key}.{inside}" if inside else key, KEYS)
    KEYS[key](key, value)


def _check_entry(prefix: str, entry: Any, keys: Mapping[str, Check]) -> None:
    if not isinstance(entry, _GROUP):
        raise UserError(f"{prefix} is {entry!r}; expected a group with {', '.join(keys)}")
    for key in entry:
        if key not in keys:
            _refuse(f"{prefix}.{key}", [f"{prefix}.{good}" for good in keys])


def _check_companion(prefix: str, companion: Mapping[str, Any]) -> None:
    if ("source" in companion) == ("average_of" in companion):
        raise UserError(
            f"{prefix} has {', '.join(companion) or 'no key'}; expected either source, the workdir "
            "of a run, or average_of and decay"
        )
    if ("average_of" in companion) != ("decay" in companion):
        raise UserError(f"{prefix} needs average_of and decay together; add or remove one")
    if "average_of" not in companion:
        return
    if (found := companion["average_of"]) != "model":
        raise UserError(f"{prefix}.average_of is {found!r}; expected 'model', the trained model")
    for key in ("title", "model"):
        if key in companion:
            raise UserError(
                f"{prefix}.{key} does not go with average_of, which has the architecture of the "
                "trained model; remove it"
            )


def _check_parts(model: Mapping[str, Any]) -> None:
    """Refuse a part without a name; what a part holds is checked by its constructor."""
    for key, part in model.items():
        if isinstance(part, _GROUP) and not is_schedule(part) and "name" not in part:
            raise UserError(f"the config has no model.{key}.name; add it to the config file")


def _refuse(key: str, keys: Iterable[str]) -> None:
    near = nearest(key, keys)
    raise UserError(f"the config has no key {key!r}; the nearest is {near!r}")


# ------------------------------------------------------------------------------ the whole config


def check(
    config: ConfigDict,
    num_devices: int = 1,
    batches: Iterable[str] = BATCHES,
) -> None:
    """Refuse a config that cannot run, before anything is built.

    Settings of parts, losses, schedules and data are checked where they are used; see also
    `tasks.checks`.

    Args:
        config: the whole config.
        num_devices: how many devices are visible, for the mesh and the batch.
        batches: the batch sizes that will be used, and have to divide over the devices.

    Raises:
        UserError: the first problem: what was found, what was expected, what to do.
    """
    check_keys(config)
    for key, check_value in KEYS.items():
        group, _, name = key.rpartition(".")
        check_value(key, config[group][name] if group else config[name])
    for group, keys in ENTRIES.items():
        for entry, settings in config[group].items():
            for key, value in settings.items():
                keys[key](f"{group}.{entry}.{key}", value)
    flat = flatten(config)
    _check_companions(config)
    _check_best(flat)
    _check_image(config)
    if config.data.get("num_frames") is not None:
        whole(1)("data.num_frames", config.data.num_frames)
    frames = config.eval.num_frames  # -1: whole videos; -n: at most their first n frames
    if not isinstance(frames, int) or isinstance(frames, bool) or frames >= 0:
        none_or(whole(1))("eval.num_frames", frames)
    if config.eval.windows is not None and frames != -1:
        raise UserError(
            f"eval.windows is {config.eval.windows}, but eval.num_frames is {frames}; expected -1, "
            "since windows are cut from whole videos; set --config.eval.num_frames=-1 or "
            "--config.eval.windows=None"
        )
    if config.data.get("last_entry") is not None and config.eval.windows is None and frames != -1:
        raise UserError(
            f"data.last_entry is {config.data.last_entry}, but eval.windows is None, so that the "
            "first frames of each video are scored, whatever enters them; set "
            "--config.eval.num_frames=-1 and --config.eval.windows= to the frames of a clip"
        )
    _check_devices(flat, num_devices, batches)


def _check_companions(config: ConfigDict) -> None:
    for name, companion in config.companions.items():
        # Without a source only where the model is stated: then it is an untrained one.
        if companion.get("source") == "" and "model" not in companion:
            raise UserError(
                f"companions.{name}.source is ''; expected the workdir of a run; "
                f"set --config.companions.{name}.source"
            )


def _check_best(flat: Mapping[str, Any]) -> None:
    if flat["eval.checkpoint"] != "best":
        return
    if not flat["checkpoint.best_metric"]:
        raise UserError(
            "eval.checkpoint is 'best', but checkpoint.best_metric names no metric; "
            "set --config.checkpoint.best_metric=loss, or --config.eval.checkpoint=latest"
        )
    if flat["checkpoint.max_to_keep"] < 2:
        raise UserError(
            "eval.checkpoint is 'best', but checkpoint.max_to_keep 1 keeps only the latest; "
            "set --config.checkpoint.max_to_keep to at least 2"
        )


def _check_image(config: ConfigDict) -> None:
    size = config.data.get("image_size")
    height, width = size if isinstance(size, tuple) and len(size) == 2 else (size, size)
    for name, pixels in (("height", height), ("width", width)):
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1:
            raise UserError(
                f"data.image_size has {name} {pixels!r}; expected a whole number of at least 1"
            )


def _check_devices(flat: Mapping[str, Any], num_devices: int, batches: Iterable[str]) -> None:
    data, fsdp = mesh_shape(flat["mesh.data"], flat["mesh.fsdp"], num_devices)
    used, parts = data * fsdp, flat["train.accumulate"]
    for key in batches:
        batch = flat[key]
        if batch % used:
            raise UserError(
                f"{key} is {batch}, which {used} devices do not divide; choose a multiple of "
                f"{used}, or --config.mesh.data=1 --config.mesh.fsdp=1"
            )
        if key == "train.batch_size" and batch % (used * parts):
            over = f" on each of {used} devices" * (used > 1)
            raise UserError(
                f"{key} is {batch}, which train.accumulate={parts} does not divide into equal "
                f"parts{over}; choose a multiple of {used * parts}, or another train.accumulate"
            )
