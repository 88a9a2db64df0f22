"""A run's backbone: the arrays that a run without a checkpoint takes from elsewhere; later they are in its checkpoints."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.devices import hosts
from smoothsa_jax.devices.host_arrays import on_host
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.manifest import fingerprint
from smoothsa_jax.interop.backbone_weights import load_backbone
from smoothsa_jax.models.build import takes_weights
from smoothsa_jax.models.parameters import FROZEN
from smoothsa_jax.training.step import Training


def features_made_of(config: ConfigDict, training: Training) -> dict[str, Any]:
    """What decides the features of a training clip beside its pixels, as plain JSON values.

    Stored features that were made of anything else are refused, see `inputs.features`.
    """
    settings = {k: v for k, v in config.model.backbone.items() if k not in ("seed", "weights")}
    made_of = {
        "backbone": settings,
        "weights": _digest(on_host(training.frozen)),
        "image_size": image_size_of(config),
        "clips": clips_of(config),
    }
    return json.loads(json.dumps(made_of))


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def refuse_other_features(source: Any, config: ConfigDict, training: Training) -> None:
    """Stored features have to be what the run's own backbone would see.

    Args:
        source: an `inputs.features.CachedFeatures`.

    Raises:
        UserError: names what differs.
    """
    for key, mine in features_made_of(config, training).items():
        if (found := source.made_of.get(key)) != mine:
            raise UserError(
                f"data.features {source.folder} holds features of other {key}: found {found}, the run has {mine}; store "
                "them anew with python -m data.cache_features and another --out, or set --config.data.features="
            )


def clips_of(config: ConfigDict) -> str:
    """Tells apart the training clips: the bytes of a prepared folder, or the options of generated clips."""
    data = config.data
    if data.name == "prepared":
        return str(fingerprint(Path(data.folder).expanduser(), "train"))
    without_effect = ("num_samples", "keep", "features", "boxes", "background_box")
    drawn = {key: data[key] for key in data if key not in without_effect}
    return json.dumps(drawn, sort_keys=True)


def with_backbone(config: ConfigDict, training: Training, warn: Callable[[str], None]) -> Training:
    """The same training with the weights that `model.backbone.weights` names.

    Raises:
        UserError: they cannot be had, or do not fit; see `interop.backbone_weights`.
    """
    backbone = config.model.backbone
    if not takes_weights(backbone):
        if "weights" not in backbone:  # of a kind that has none
            return training
        return dataclasses.replace(
            training, frozen_from="random values, as model.backbone.weights=random asks"
        )
    shapes = {name.removeprefix(FROZEN): x for name, x in training.frozen.items()}
    arrays, what = load_backbone(backbone, shapes, training.grid)
    if hosts.is_multi_process():  # each has its own files
        hosts.refuse_differences(
            {f"what model.backbone.weights={backbone.weights} holds": _digest(arrays)}
        )
    frozen = {f"{FROZEN}{name}": array for name, array in arrays.items()}
    places = {name: x.sharding for name, x in training.frozen.items()}
    return dataclasses.replace(training, frozen=jax.device_put(frozen, places), frozen_from=what)
