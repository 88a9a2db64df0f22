"""Runs and saved models in the layout before version 0.2: recognize, refuse and rename them.

The functions map old names to new ones and change no value. `upgrade.py` applies them to a run,
`convert.py` to a saved model. Delete this file, `upgrade.py` and the calls of `refuse` when no such
folders are left.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.config.renewed import renewed
from smoothsa_jax.config.values import canonical, flatten
from smoothsa_jax.errors import UserError

Config = Mapping[str, Any] | ConfigDict

SINCE = "0.2"  # the first version with the current layout
TITLE = "SmoothSA"  # the only name before
COMPANION = "slot_model"  # the SmoothSA under a recognition head
_NEEDED = object()  # marks a key without a default

# The settings of each part by its name, with the defaults that their constructors had.
_VIT = {"width": _NEEDED, "depth": _NEEDED, "num_heads": _NEEDED, "registers": 4, "swiglu": False}
_BACKBONES = {
    "vit": {**_VIT, "patch": 14, "resize": 0.875},
    "dinov3": {**_VIT, "patch": 16, "resize": 1.0},
    "colour_fourier": {
        "width": _NEEDED,
        "patch": _NEEDED,
        "window": _NEEDED,
        "bandwidth": _NEEDED,
        "position_width": 8,
        "position_scale": 0.3,
    },
}
_PROJECTIONS: dict[str, dict[str, Any]] = {"mlp": {}}
_SLOT_ATTENTIONS = {"slot_attention": {"truncate": True}}  # renamed by config/renewed.py
_RANDSFQ = {"num_heads": _NEEDED, "history": _NEEDED, "dropout_rate": _NEEDED}
_TRANSITIONS: dict[str, dict[str, Any]] = {"randsfq": _RANDSFQ, "none": {}}
_DECODERS = {
    "random_ar": {"num_layers": _NEEDED, "num_heads": _NEEDED},
    "mlp_mixture": {"num_layers": _NEEDED, "hidden_size": _NEEDED, "uniform_values": False},
}
_INITIALIZERS = ("gaussian", "boxes")
_DATA = {
    "sprites": "min_objects palette_size keep seed".split(),
    "prepared": "folder categories repeat_frames".split(),
}
_DATA_OF_ALL = "image_size num_frames max_objects num_samples boxes background_box"


# -------------------------------------------------------------------------------------- recognizing


def is_before(config: Config) -> bool:
    """Whether a config has the old layout."""
    model = config.get("model")
    return "loss" in config or (isinstance(model, Mapping | ConfigDict) and "backbone" in model)


def refuse(path: str | Path, config: Config) -> None:
    """Stop where a run or a saved model of the old layout is opened; do nothing for any other.

    Args:
        path: the workdir, or the folder of the saved model.
        config: its config.

    Raises:
        UserError: the config has the old layout; gives the command that converts the folder.
    """
    if not is_before(config):
        return
    path = Path(path)
    what = "a saved model" if (path / "model.safetensors").is_file() else "a run"
    named = path if path.name else path.absolute()
    target = named.with_name(f"{named.name}_converted")
    raise UserError(
        f"{path} holds {what} in the layout before version {SINCE}; convert it: "
        f"python -m smoothsa_jax.convert {shlex.quote(str(path))} {shlex.quote(str(target))}"
    )


# ------------------------------------------------------------------------------------------ configs


class _Keys:
    """The flat keys of an old config. Each is taken once; keys that remain are unknown."""

    def __init__(self, config: Config):
        self._flat = flatten(config)

    def has(self, name: str) -> bool:
        """Whether there is such a key, or such a group of keys."""
        return any(key == name or key.startswith(f"{name}.") for key in self._flat)

    def take(self, key: str, default: Any = _NEEDED) -> Any:
        value = self._flat.pop(key, None)
        if value is not None:
            return value
        if default is _NEEDED:
            _fail(f"it has no {key}, which every run of that layout has")
        return default

    def drop(self, group: str, names: str) -> None:
        """Take keys that had no effect."""
        for name in names.split():
            self.take(f"{group}.{name}", None)

    def part(self, group: str, choices: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """`name` and the settings that belong to it."""
        name = self.take(f"{group}.name")
        if name not in choices:
            _fail(f"{group}.name is {name!r}, expected one of {', '.join(choices)}")
        settings = {key: self.take(f"{group}.{key}", x) for key, x in choices[name].items()}
        return {"name": name, **settings}

    def refuse_rest(self) -> None:
        if self._flat:
            _fail(f"it has keys that no run of that layout has: {', '.join(sorted(self._flat))}")


def _fail(reason: str) -> NoReturn:
    raise UserError(
        f"this config of the layout before version {SINCE} cannot be converted: {reason}; "
        "correct its config.json and the configs of its checkpoints, or train again"
    )


def convert_config(old: Config) -> ConfigDict:
    """Return the new config that describes the same run.

    Keys that older runs lack get the values that they stood for.

    Raises:
        UserError: a key is unknown or missing, or the run has no equivalent.
    """
    keys = _Keys(old)
    is_recognition = keys.has("recognition")
    slot_model, encoder_weights = _convert_model(keys)
    match_paper = keys.take("train.match_paper", False)
    if is_recognition:
        task = _convert_recognition(keys, slot_model, match_paper)
    else:
        task = {
            "task": "discovery",
            "model": slot_model,
            "losses": _convert_losses(keys, "cold" in slot_model["initializer"]),
            "companions": {},
            "weights": {"encoder": encoder_weights},
            "match_paper": match_paper,
        }
    new = {
        "name": keys.take("name"),
        "title": TITLE,
        "task": task["task"],
        "seed": keys.take("seed"),
        "dtype": keys.take("dtype"),
        "matmul_precision": keys.take("matmul_precision", "default"),
        "data": _convert_data(keys),
        "model": task["model"],
        "losses": task["losses"],
        "companions": task["companions"],
        "weights": task["weights"],
        "optimizer": {
            "learning_rate": {
                "schedule": "warmup_cosine",
                "peak": keys.take("optimizer.learning_rate"),
                "warmup": keys.take("optimizer.warmup_fraction"),
                "end_ratio": keys.take("optimizer.final_ratio"),
            },
            "clip_norm": keys.take("optimizer.clip_norm"),
        },
        "train": {
            "num_steps": keys.take("train.num_steps"),
            "batch_size": keys.take("train.batch_size"),
            "accumulate": keys.take("train.accumulate", 1),
            "num_threads": keys.take("train.num_threads", 1),
            "num_workers": keys.take("train.num_workers", 0),
            "remat": keys.take("train.remat", "none"),
            "scan_unroll": keys.take("train.scan_unroll", 0),
            "match_paper": task["match_paper"],
            "xla_flags": keys.take("train.xla_flags", ""),
        },
        "log": {"every": keys.take("train.log_every")},
        "eval": {
            "split": keys.take("eval.split"),
            "num_samples": keys.take("eval.num_samples", None),
            "num_frames": keys.take("eval.num_frames", None),
            "batch_size": keys.take("eval.batch_size"),
            "seeds": keys.take("eval.seeds"),
            "masks": "decoder",
            "match_paper": keys.take("eval.match_paper", False),
            "background_column_always": keys.take("eval.background_column_always", False),
            "baselines": keys.take("eval.baselines", True),
            "num_pictures": keys.take("eval.num_pictures", 8),
            "validation_samples": keys.take("eval.validation_samples", 32),
            "checkpoint": keys.take("eval.checkpoint", "latest"),
        },
        "checkpoint": {
            "every": keys.take("checkpoint.every"),
            "max_to_keep": keys.take("checkpoint.max_to_keep"),
            "best_metric": keys.take("checkpoint.best_metric", None),
            "best_mode": keys.take("checkpoint.best_mode", "min"),
        },
        "mesh": {"data": keys.take("mesh.data", -1), "fsdp": keys.take("mesh.fsdp", 1)},
    }
    keys.refuse_rest()
    return canonical(ConfigDict(renewed(new)))


def _convert_model(keys: _Keys) -> tuple[dict[str, Any], dict[str, Any]]:
    """`model` of a SmoothSA, and where its encoder's weights come from."""
    encoder = keys.part("model.backbone", _BACKBONES)
    seed = keys.take("model.backbone.seed")
    if encoder["name"] == "colour_fourier":
        keys.drop("model.backbone", "weights")
        source = "random"
    else:
        source = keys.take("model.backbone.weights")
    weights = {"into": "encoder", "source": source, "frozen": ("*",)}
    if source == "random":
        weights["seed"] = seed
    model = {
        "num_slots": keys.take("model.slot_attention.num_slots"),
        "slot_size": keys.take("model.slot_attention.slot_size"),
        "encoder": encoder,
        "projection": keys.part("model.projection", _PROJECTIONS),
        "initializer": _convert_initializer(keys),
        "aggregator": {
            **keys.part("model.slot_attention", _SLOT_ATTENTIONS),
            "first": keys.take("model.slot_attention.first_iterations"),
            "later": keys.take("model.slot_attention.later_iterations"),
        },
        "transition": keys.part("model.transition", _TRANSITIONS),
        "decoder": keys.part("model.decoder", _DECODERS),
        "target": {"name": "features"},
    }
    if model["transition"]["name"] == "none":
        keys.drop("model.transition", "num_heads history dropout_rate")
    return model, weights


def _convert_initializer(keys: _Keys) -> dict[str, Any]:
    group = "model.initializer"
    cold = keys.part(group, {name: {} for name in _INITIALIZERS})
    cold["log_std"] = keys.take(f"{group}.cold_log_std", 0.0)
    if not keys.take(f"{group}.warmer"):
        keys.drop(group, "num_heads query_log_std straight_through detach_until")
        return cold
    at = keys.take(f"{group}.detach_until")
    return {
        "name": "warmed",
        "cold": cold,
        "num_heads": keys.take(f"{group}.num_heads"),
        "log_std": keys.take(f"{group}.query_log_std", 0.0),
        "straight_through": keys.take(f"{group}.straight_through", False),
        "detach": {"schedule": "step", "begin": 1.0, "end": 0.0, "at": at},
    }


def _convert_losses(keys: _Keys, has_warmer: bool) -> dict[str, dict[str, Any]]:
    """The terms that were computed: those with a weight, and distillation with a warmer only."""
    losses = {}
    for name in ("reconstruction", "distillation", "slot_contrast"):
        weight = keys.take(f"loss.{name}", 0.0)
        if weight and (has_warmer or name != "distillation"):
            losses[name] = {"weight": weight}
    if "slot_contrast" in losses:
        losses["slot_contrast"]["temperature"] = 0.1
    return losses


def _convert_recognition(
    keys: _Keys, slot_model: dict[str, Any], train_match_paper: bool
) -> dict[str, Any]:
    match_paper = keys.take("recognition.match_paper", False)
    queries = slot_model["initializer"].get("cold", slot_model["initializer"])["name"]
    # With Gaussian queries every sample has all slots, whatever train.match_paper says.
    if match_paper != train_match_paper and queries == "boxes":
        _fail(
            f"recognition.match_paper is {match_paper} and train.match_paper is "
            f"{train_match_paper}, but today train.match_paper stands for both, and they have "
            "different effects where slots start from boxes"
        )
    losses = {name: {"weight": keys.take(f"loss.{name}")} for name in ("category", "box")}
    keys.drop("loss", "reconstruction distillation slot_contrast")
    source = keys.take("recognition.workdir")
    return {
        "task": "recognition",
        "model": {
            "name": "recognition_head",
            "num_classes": keys.take("recognition.num_classes"),
            "dropout_rate": keys.take("recognition.dropout_rate", 0.1),
        },
        "losses": {name: loss for name, loss in losses.items() if loss["weight"]},
        "companions": {COMPANION: {"source": source, "title": TITLE, "model": slot_model}},
        "weights": {},
        "match_paper": match_paper,
    }


def _convert_data(keys: _Keys) -> dict[str, Any]:
    """The same keys and values; `features` is new since the first runs."""
    name = keys.part("data", {name: {} for name in _DATA})["name"]
    data = {"name": name, "features": keys.take("data.features", "")}
    for key in (*_DATA_OF_ALL.split(), *_DATA[name]):
        if keys.has(f"data.{key}"):  # None has a meaning there
            data[key] = keys.take(f"data.{key}", None)
    return data


# ------------------------------------------------------------------------------------------- arrays


def convert_names(arrays: Mapping[str, np.ndarray], old_config: Config) -> dict[str, np.ndarray]:
    """The same arrays by their current names.

    Args:
        arrays: of a model (`backbone.embed.kernel`), or of a checkpoint (`state/params/...`,
            `frozen/...`, `state/step`); for a recognition run always of a checkpoint.
        old_config: their config, in the old layout.
    """
    # Without a warmer the sampler is the initializer.
    has_warmer = old_config["model"]["initializer"]["warmer"]
    prefixes = {
        "backbone.": "encoder.",
        "slot_attention.": "aggregator.",
        "initializer.sampler.": "initializer.cold." if has_warmer else "initializer.",
    }
    is_recognition = "recognition" in old_config

    def renamed(name: str) -> str:
        folder, slash, name = name.rpartition("/")
        if is_recognition and folder != "frozen":
            return f"{folder}{slash}{name}"
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if old is not None:
            name = prefixes[old] + name.removeprefix(old)
        return f"{folder}{slash}{f'{COMPANION}.' * is_recognition}{name}"

    converted = {renamed(name): array for name, array in arrays.items()}
    if len(converted) != len(arrays):
        raise UserError(
            f"two of {len(arrays)} arrays would get the same name, expected a name for each: these "
            f"are not the arrays of a model before version {SINCE}; copy the run again"
        )
    return converted
