"""Slots of a frozen slot model: constants of the tasks that build on one."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from smoothsa_jax.inputs.features import SLOT_ARRAYS
from smoothsa_jax.models.interfaces import Draws
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.tasks.discovery import target_of
from smoothsa_jax.tasks.task import Outputs

SLOT_MODEL = "slot_model"  # the companion
SLOTS = "slots"


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
