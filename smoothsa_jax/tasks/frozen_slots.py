"""Slots of a frozen slot model: constants of the tasks that build on one."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.features import SLOT_ARRAYS
from smoothsa_jax.models.interfaces import Draws
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.tasks.discovery import target_of
from smoothsa_jax.tasks.task import Outputs

SLOT_MODEL = "slot_model"  # the companion
SLOTS = "slots"


def slot_model_of(config: ConfigDict, used: str) -> ConfigDict:
    """Return the config of the companion whose slots a task uses.

    Args:
        config: the whole config.
        used: what is done with its slots, for the message, such as "predicted".

    Raises:
        UserError: there is none.
    """
    companion = config.companions.get(SLOT_MODEL)
    if companion is None or "model" not in companion:
        raise UserError(
            f"companions.{SLOT_MODEL} is missing; expected the slot model whose slots are "
            f"{used}; set --config.companions.{SLOT_MODEL}.source to the folder of its run"
        )
    return companion.model


def refuse_other_parts(config: ConfigDict, known: Sequence[str]) -> None:
    """Refuse keys of `model` that a task does not have.

    Raises:
        UserError: names the first of them.
    """
    for key in config.model:
        if key not in known:
            listed = " and ".join(known) if len(known) == 2 else ", ".join(known)
            raise UserError(
                f"model.{key} is not a part of a model of the task {config.task!r}: expected "
                f"{listed}; remove it"
            )


def find_slots(
    model: SlotModel,
    batch: Mapping[str, Array],
    features: Array,
    draws: Draws,
    decodes: bool = False,
) -> Outputs:
    """Return what a frozen model finds in clips.

    Args:
        model: the slot model.
        batch: the clips.
        features: what `features_of` returned.
        draws: what `SlotModel.draw` returned.
        decodes: whether the masks of its decoder are wanted, where it has some without a tokenizer.

    Returns:
        `slots` (B,T,N,D), `attention` (B,T,N,h,w), `slot_mask` (B,T,N), `pooled` (B,T,C), the mean
        of each frame's features, and, where they are wanted, `masks` (B,T,N,h,w).
    """
    given = target_of(model, batch, features, draws) if decodes else None
    outputs = model(features, given, draws, batch.get("boxes"), batch.get("slot_mask"))
    found = {name: outputs[name] for name in SLOT_ARRAYS if name in outputs}
    found["pooled"] = features.mean(axis=2)
    mask = outputs.get("slot_mask")
    found["slot_mask"] = of_frames(mask, found[SLOTS].shape[:3])
    return jax.lax.stop_gradient(found)


def of_frames(
    mask: Bool[Array, "B N"] | Bool[Array, "B T N"] | None, shape: tuple[int, int, int]
) -> Bool[Array, "B T N"]:
    """Return the valid slots of each frame."""
    if mask is None:
        return jnp.ones(shape, bool)
    return jnp.broadcast_to(mask if mask.ndim == 3 else mask[:, None], shape)
