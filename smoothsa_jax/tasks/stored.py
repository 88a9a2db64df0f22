"""Check that what is stored equals what the run's own models would compute."""

import json
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.sources import digest
from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.devices.host_arrays import on_host
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.build import FOLDERS, PREPARED
from smoothsa_jax.inputs.features import MADE_TOKENS
from smoothsa_jax.inputs.manifest import fingerprint
from smoothsa_jax.inputs.remote import local_folder
from smoothsa_jax.inputs.resize import INTERPOLATIONS
from smoothsa_jax.models.parameters import ENCODER, Parameters
from smoothsa_jax.models.tokenizer_model import TOKENIZER
from smoothsa_jax.tasks.discovery import TEACHER
from smoothsa_jax.tasks.frozen_slots import SLOT_MODEL

# Settings of data that change the view of a frame, and their defaults.
OF_VIEW = {"interpolation": INTERPOLATIONS[0], "centre_crop": None, "views": False}


def features_made_of(config: ConfigDict, frozen: Parameters) -> dict[str, Any]:
    """Return what determines the features of a training clip besides its pixels, as JSON values.

    Stored features made from anything else are refused; see `inputs.features`.

    Args:
        config: the config of the run.
        frozen: frozen arrays of the run, including the encoder's.
    """
    encoder = {name: x for name, x in frozen.items() if name.startswith(f"{ENCODER}.")}
    made_of = {
        "encoder": dict(config.model.encoder.items()),
        "weights": digest(on_host(encoder)),
        "image_size": image_size_of(config),
        "clips": clips_of(config),
    }
    # Folders that were stored before there was a choice do not name it.
    for key, default in OF_VIEW.items():
        if (how := config.data.get(key, default)) != default:
            made_of[key] = how
    return json.loads(json.dumps(made_of))


def tokens_made_of(config: ConfigDict, frozen: Parameters) -> dict[str, Any] | None:
    """Return what determines the tokens of a frame besides its pixels or features, as JSON values.

    Returns:
        None: the config has no tokens that could be stored, since there is no frozen tokenizer, or
        since it draws them anew in each step.
    """
    companion = config.companions.get(TOKENIZER, {})
    if "model" not in companion or companion.get("draws") == "training":
        return None
    start = f"{TOKENIZER}."
    arrays = {name: x for name, x in frozen.items() if name.startswith(start)}
    return {"name": companion.model.tokenizer.name, "weights": digest(on_host(arrays))}


def refuse_other_features(source: Any, config: ConfigDict, frozen: Parameters) -> None:
    """Refuse stored features that differ from those of the run's own encoder.

    Args:
        source: an `inputs.features.CachedFeatures`.
        config: the config of the run.
        frozen: frozen arrays of the run, including the encoder's.

    Raises:
        UserError: the features were made differently, or the teacher needs those of another
            encoder.
    """
    _refuse_other_encoder_of_teacher(config, frozen)
    own = features_made_of(config, frozen)
    for key in (*own, *(key for key in OF_VIEW if key not in own)):
        default = OF_VIEW.get(key)
        found, mine = source.made_of.get(key, default), own.get(key, default)
        if found != mine:
            raise UserError(
                f"data.features {source.folder} holds features of other {key}: found {found}, the "
                f"run has {mine}; remove that folder and store them again with python -m "
                "data.store, or set --config.data.features="
            )
    found, mine = source.made_of.get(MADE_TOKENS), tokens_made_of(config, frozen)
    if found is not None and mine is not None and found != mine:
        raise UserError(
            f"data.features {source.folder} holds tokens of another tokenizer than "
            f"companions.{TOKENIZER}: found {found}, the run has {mine}; remove that folder and "
            "store them again with python -m data.store, or set --config.data.features="
        )


def slots_made_of(
    config: ConfigDict, frozen: Parameters, splits: Sequence[str] = ("train",)
) -> dict[str, Any]:
    """Return what determines the slots of clips, as JSON values.

    Args:
        config: the config of the run, whose companion finds the slots.
        frozen: frozen arrays of the run, including the companion's.
        splits: of the clips.
    """
    start = f"{SLOT_MODEL}."
    arrays = {k.removeprefix(start): x for k, x in frozen.items() if k.startswith(start)}
    made_of = {
        "model": config.companions[SLOT_MODEL].model.to_dict(),
        "weights": digest(on_host(arrays)),
        "image_size": image_size_of(config),
        "clips": {split: _clips_with_boxes(config, split) for split in splits},
    }
    for key, default in OF_VIEW.items():
        if (how := config.data.get(key, default)) != default:
            made_of[key] = how
    return json.loads(json.dumps(made_of))


def refuse_other_slots(
    source: Any, config: ConfigDict, frozen: Parameters, splits: Sequence[str] = ("train",)
) -> None:
    """Refuse stored slots that differ from those that the run's own slot model would find.

    Args:
        source: an `inputs.features.CachedSlots` of the training split.
        config: the config of the run.
        frozen: frozen arrays of the run, including the companion's.
        splits: those whose stored slots are read.

    Raises:
        UserError: the slots were made by another model, or of other clips.
    """
    own = slots_made_of(config, frozen, splits)
    for key in (*own, *(key for key in OF_VIEW if key not in own)):
        default = OF_VIEW.get(key)
        found, mine = source.made_of.get(key, default), own.get(key, default)
        if key == "clips" and source.matched_by_name:
            continue
        if key == "clips":
            of_split = next((x for x in splits if found.get(x) != mine[x]), splits[0])
            found, mine = found.get(of_split), mine[of_split]
        if found == mine:
            continue
        if isinstance(mine, dict) and isinstance(found, dict):
            names = sorted(name for name in {*found, *mine} if found.get(name) != mine.get(name))
            found, mine = f"another {names[0]}", f"that of companions.{SLOT_MODEL}"
        raise UserError(
            f"data.slots {source.folder} holds slots of other {key}: found {_short(found)}, the "
            f"run has {_short(mine)}; remove that folder and store them again with python -m "
            "data.store, or set --config.data.slots="
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _refuse_other_encoder_of_teacher(config: ConfigDict, frozen: Parameters) -> None:
    """Refuse a teacher that needs features of an encoder besides the run's own."""
    if "model" not in config.companions.get(TEACHER, {}):
        return
    theirs = {
        name.removeprefix(f"{TEACHER}."): x
        for name, x in frozen.items()
        if name.startswith(f"{TEACHER}.{ENCODER}.")
    }
    mine = {name: x for name, x in frozen.items() if name.startswith(f"{ENCODER}.")}
    same = config.companions[TEACHER].model.encoder == config.model.encoder
    if not same or digest(on_host(theirs)) != digest(on_host(mine)):
        raise UserError(
            f"data.features is set, but companions.{TEACHER} has another encoder than the model, "
            "and would read features that are not its own; set --config.data.features="
        )


def clips_of(config: ConfigDict) -> str:
    """Identify the training clips: a prepared folder by its bytes, generated clips by options."""
    data = config.data
    if data.name in PREPARED:
        return str(fingerprint(local_folder(data.folder, data.get("cache")), "train"))
    without_effect = ("num_samples", "keep", *FOLDERS, "boxes", "background_box")
    drawn = {key: data[key] for key in data if key not in without_effect}
    return json.dumps(drawn, sort_keys=True)


def _clips_with_boxes(config: ConfigDict, split: str) -> str:
    """Identify the clips of a split, and the boxes from which slots may start."""
    data = config.data
    if data.name in PREPARED:
        found = {"files": fingerprint(local_folder(data.folder, data.get("cache")), split)}
    else:
        without_effect = ("num_samples", "keep", *FOLDERS)
        found = {key: data[key] for key in data if key not in without_effect}
        if split != "train" and config.eval.num_frames is not None:
            found["num_frames"] = config.eval.num_frames
    # Defaults are false, which a folder that was stored without the key does not name.
    boxes = {key: data.get(key) for key in ("boxes", "background_box", "max_objects")}
    boxes |= {key: True for key in ("zero_boxes", "stored_boxes") if data.get(key)}
    return json.dumps({**boxes, **found}, sort_keys=True)
