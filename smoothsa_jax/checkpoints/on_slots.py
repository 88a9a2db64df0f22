"""Published files of what is trained on slots: rollouters and readouts of SlotFormer's program.

Such a file does not hold the slot model. A rollouter's has the decoder of it, a readout's nothing.
So a run of it needs a run of the slot model, named in `companions.slot_model.source`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from smoothsa_jax.config.values import canonical, image_size_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.programs import Program
from smoothsa_jax.interop.slotformer import (
    DVAE,
    PHYRE_SETTINGS,
    READOUTS,
    STEVE,
    of_tokenizer,
    phyre_sizes_of,
    sizes_of,
)
from smoothsa_jax.interop.slotformer import ROLLOUTER as SLOTFORMER
from smoothsa_jax.models.build import (
    READOUT,
    ROLLOUTER,
    build_readout_model,
    model_shapes,
    readout_sizes,
    slot_model_shapes,
)
from smoothsa_jax.models.parameters import split

SLOT_MODEL = "slot_model"
DECODER = f"{SLOT_MODEL}.decoder."  # begins our names of what a rollouter's file has of it
_BESIDE = "beside"


def is_on_slots(config: ConfigDict) -> bool:
    """Whether a config's model is a rollouter or a readout, without its slot model."""
    return ROLLOUTER in config.model or READOUT in config.model


def program_on_slots(config: ConfigDict) -> Program:
    """Return the program that a rollouter or a readout belongs to.

    Raises:
        UserError: none has it.
    """
    for part, table in ((ROLLOUTER, {"slotformer": SLOTFORMER}), (READOUT, READOUTS)):
        if part not in config.model:
            continue
        if (name := config.model[part].name) not in table:
            raise UserError(
                f"model.{part}.name is {name!r}, which no published program has; expected one of "
                f"{', '.join(table)}"
            )
        return table[name]
    raise AssertionError("see is_on_slots")


def as_published(config: ConfigDict) -> ConfigDict:
    """Return the config of a readout as its files have it.

    No others are trained beside it, and each token that Aloe sees has a position of its own.
    """
    if READOUT not in config.model:
        return config
    config = config.copy_and_resolve_references().unlock()
    config.model[_BESIDE] = ()
    if _BESIDE in config.losses:
        del config.losses[_BESIDE]
    if config.model[READOUT].name == "aloe":
        config.model[READOUT].positions = "token"
    return canonical(config)


def with_readout_of_phyre(config: ConfigDict, state_dict: Mapping[str, np.ndarray]) -> ConfigDict:
    """Return the config of a readout of two answers with that of a file of PHYRE in its place."""
    if READOUT not in config.model or len(config.model.answers) != 2:
        return config
    config = config.copy_and_resolve_references().unlock()
    config.model[READOUT] = ConfigDict(
        {"name": "frames_transformer", **PHYRE_SETTINGS, **phyre_sizes_of(state_dict)}
    )
    return canonical(config)


def shapes_on_slots(config: ConfigDict) -> dict[str, Any]:
    """Return the shapes of the arrays that a file has, those of the slot model's decoder too."""
    slot_model, size = config.companions[SLOT_MODEL].model, image_size_of(config)
    if ROLLOUTER in config.model:
        _, trained, frozen = split(model_shapes(config.model, size, slot_model))
        return {**trained, **frozen, **_decoder_shapes(config)}
    sizes = readout_sizes(config, slot_model)
    _, trained, frozen = split(
        nnx.eval_shape(lambda: build_readout_model(config.model, sizes, {}, 0))
    )
    return {**trained, **frozen}


def _holds_decoder(config: ConfigDict) -> bool:
    """Whether a rollouter's file has the decoder of its slot model: that of SAVi or of STEVE."""
    decoder = config.companions[SLOT_MODEL].model.get("decoder", {})
    of_pixels = decoder.get("name") == "spatial_broadcast" and decoder.get("position") == "borders"
    return of_pixels or decoder.get("start_in_table", False)


def _decoder_shapes(config: ConfigDict) -> dict[str, Any]:
    if not _holds_decoder(config):
        return {}
    model = slot_model_shapes(config.companions[SLOT_MODEL].model, image_size_of(config))
    arrays = {name: x for part in split(model)[1:] for name, x in part.items()}
    return {f"{SLOT_MODEL}.{k}": x for k, x in arrays.items() if k.startswith("decoder.")}


def arrays_on_slots(arrays: Mapping[str, np.ndarray], config: ConfigDict) -> dict[str, np.ndarray]:
    """Return those arrays of a run that a file has."""
    front = f"{ROLLOUTER if ROLLOUTER in config.model else READOUT}."
    kept = (front, DECODER) if front == f"{ROLLOUTER}." and _holds_decoder(config) else (front,)
    return {name: x for name, x in arrays.items() if name.startswith(kept)}


def facts_on_slots(config: ConfigDict) -> dict[str, Any]:
    """Return what a file has besides the arrays, as JSON values; see `Program.kept`."""
    slot_model = config.companions[SLOT_MODEL].model
    found: dict[str, Any] = {"slots": slot_model.num_slots}
    if READOUT in config.model:
        frames = config.model[READOUT].get("frames")
        return found if frames is None else {**found, "frames": len(frames)}
    if "cells" in slot_model.get("decoder", {}) and _holds_decoder(config):
        cells = slot_model.decoder.cells
        found["cells"] = [cells, cells] if isinstance(cells, int) else list(cells)
    return found


def may_be_on_slots(config: ConfigDict, state_dict: Mapping[str, np.ndarray]) -> bool:
    """Whether a file reads slots as wide as those of a config's slot model."""
    width = config.companions[SLOT_MODEL].model.slot_size
    return _slots_of(state_dict).get("channels", width) == width


def advice_on_slots(
    state_dict: Mapping[str, np.ndarray], name: str, config: ConfigDict
) -> str | None:
    """Say how a config has to differ for a file of a rollouter or a readout to fit it.

    Args:
        state_dict: the file's.
        name: the config's, for the command line.
        config: the whole config.

    Returns:
        None: it is of another model, or neither the slots nor the sizes of the rollouter differ.
    """
    if not is_on_slots(config):
        return None
    slot_model = config.companions[SLOT_MODEL].model
    source = f"--config.companions.{SLOT_MODEL}.source"
    found = _slots_of(state_dict)
    mine = {"slots": slot_model.num_slots, "channels": slot_model.slot_size}
    for what, number in found.items():
        if number != mine[what]:
            return (
                f"it reads {number} {what} of {'a slot' if what == 'channels' else 'a frame'}, and "
                f"the slot model of the config {name} has {mine[what]}; give the run of the slot "
                f"model that it was trained on with {source}"
            )
    if ROLLOUTER not in config.model:
        return None
    settings = config.model[ROLLOUTER]
    other = {k: x for k, x in sizes_of(state_dict).items() if settings.get(k) != x}
    if not other:
        return None
    flags = " ".join(f"--config.model.{ROLLOUTER}.{key}={x}" for key, x in other.items())
    listed = ", ".join(f"{key} {x}" for key, x in other.items())
    return (
        f"its rollouter has {listed}, unlike the config {name}; convert it with --config={name} "
        f"{flags}"
    )


def _slots_of(state_dict: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the number of slots, or of their channels, that a file tells."""
    found = {}
    if (pairs := state_dict.get("comb_idx")) is not None and len(pairs):
        found["slots"] = int(np.max(pairs)) + 1
    for key, more, times in (
        ("rollouter.in_proj.weight", 0, 1),
        ("in_proj.weight", 0, 1),
        ("transformer_model.vision_in_proj.weight", 2, 1),
        ("linear1.weight", 0, 2),
    ):
        if key in state_dict:
            found["channels"] = (state_dict[key].shape[1] - more) // times
    return found


def number_unread(state_dict: Mapping[str, np.ndarray], config: ConfigDict) -> int:
    """Return how many keys of a rollouter's file its run lacks: those of a tokenizer."""
    return sum(map(of_tokenizer, state_dict)) if ROLLOUTER in config.model else 0


def has_tokenizer(config: ConfigDict) -> bool:
    """Whether a file of a config has the tokenizer of its slot model: a rollouter's on STEVE."""
    decoder = config.companions[SLOT_MODEL].model.get("decoder", {})
    return ROLLOUTER in config.model and decoder.get("start_in_table", False)


def tokenizer_keys(tokenizer: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what a rollouter's file has of a tokenizer.

    Args:
        tokenizer: its arrays, by our names; {}: there is none.
    """
    return {f"{DVAE}{key}": x for key, x in STEVE.to_theirs(tokenizer).items()}


def refuse_other_decoder(
    found: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], source: str
) -> None:
    """Refuse a slot model with another decoder than a rollouter's file.

    Args:
        found: arrays of the file.
        own: arrays of the run of the slot model, by the same names.
        source: that run.

    Raises:
        UserError: they differ.
    """
    names = sorted(x for x in found if x.startswith(DECODER))
    _refuse_others("decoder", names, found, own, source)


def refuse_other_tokenizer(
    found: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], source: str
) -> None:
    """Refuse a slot model with another tokenizer than a rollouter's file.

    Args:
        found: a state dict of a rollouter.
        own: what `tokenizer_keys` returned of the run of the slot model; {}: it is not known.
        source: that run.

    Raises:
        UserError: they differ.
    """
    names = [x for x in sorted(filter(of_tokenizer, found)) if own]
    _refuse_others("tokenizer", names, found, own, source)


def _refuse_others(
    part: str,
    names: Iterable[str],
    found: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
    source: str,
) -> None:
    for name in names:
        mine = own.get(name)
        same = mine is not None and mine.shape == found[name].shape
        if not same or np.abs(np.asarray(mine) - found[name]).max() > 1e-6:
            raise UserError(
                f"its {part} is not that of companions.{SLOT_MODEL}.source {source}, which "
                f"differs in {name.removeprefix(f'{SLOT_MODEL}.')}; give the run of the slot model "
                "that it was trained on"
            )
