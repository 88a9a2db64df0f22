"""Constants that a training reads from disk: they have to be what its own models would compute."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.sources import digest
from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.devices.host_arrays import on_host
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.manifest import fingerprint
from smoothsa_jax.models.parameters import ENCODER, Parameters, frozen_patterns


def features_made_of(config: ConfigDict, frozen: Parameters) -> dict[str, Any]:
    """Return what decides the features of a training clip beside its pixels, as JSON values.

    Stored features that were made of anything else are refused, see `inputs.features`.

    Args:
        frozen: arrays of the run, the encoder's among them.
    """
    encoder = {name: x for name, x in frozen.items() if name.startswith(f"{ENCODER}.")}
    made_of = {
        "encoder": dict(config.model.encoder.items()),
        "weights": digest(on_host(encoder)),
        "image_size": image_size_of(config),
        "clips": clips_of(config),
    }
    return json.loads(json.dumps(made_of))


def refuse_other_features(source: Any, config: ConfigDict, frozen: Parameters) -> None:
    """Refuse stored features that the run's own encoder would not compute.

    Args:
        source: an `inputs.features.CachedFeatures`.
        config: of the run.
        frozen: arrays of the run.

    Raises:
        UserError: the encoder is trained, or names what differs.
    """
    patterns = frozen_patterns(config.weights)
    if not any(pattern in ("*", f"{ENCODER}.*") for pattern in patterns):
        raise UserError(
            "data.features is set, but the encoder is trained, which changes its features; freeze "
            "it with --config.weights.encoder.frozen='(\"*\",)', or set --config.data.features="
        )
    for key, mine in features_made_of(config, frozen).items():
        if (found := source.made_of.get(key)) != mine:
            raise UserError(
                f"data.features {source.folder} holds features of other {key}: found {found}, the "
                f"run has {mine}; store them anew with python -m data.store and another --out, or "
                "set --config.data.features="
            )


def clips_of(config: ConfigDict) -> str:
    """Tell apart the training clips: the bytes of a prepared folder, or the options of generated
    clips."""
    data = config.data
    if data.name == "prepared":
        return str(fingerprint(Path(data.folder).expanduser(), "train"))
    without_effect = ("num_samples", "keep", "features", "boxes", "background_box")
    drawn = {key: data[key] for key in data if key not in without_effect}
    return json.dumps(drawn, sort_keys=True)
