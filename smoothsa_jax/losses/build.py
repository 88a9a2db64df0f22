"""The weighted sum of loss terms that a config chooses."""

from collections.abc import Callable, Mapping

from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.losses.reconstruction import reconstruction_loss
from smoothsa_jax.losses.slots import distillation_loss, slot_contrast_loss

# What the terms read of the model's outputs, beside the features.
LOSS_INPUTS = ("reconstruction", "slots", "warm_queries")
# name of the term -> (outputs of the model, slot mask) -> scalar
TERMS: dict[str, Callable] = {
    "reconstruction": lambda outputs, mask: reconstruction_loss(
        outputs["reconstruction"], outputs["features"]
    ),
    "distillation": lambda outputs, mask: distillation_loss(
        outputs["warm_queries"], outputs["slots"][:, 0], mask
    ),
    "slot_contrast": lambda outputs, mask: slot_contrast_loss(outputs["slots"], mask),
}


def active_terms(weights: Mapping[str, float], warmer: bool, num_frames: int) -> dict[str, float]:
    """The terms that are computed: those of a weight above 0, without distillation where there is no warmer.

    Raises:
        UserError: an unknown term, no term left, or slot contrast on clips of one frame.
    """
    unknown = sorted(set(weights) - set(TERMS))
    if unknown:
        raise UserError(
            f"loss.{unknown[0]} is no loss term: expected {', '.join(sorted(TERMS))}; remove or rename it"
        )
    active = {name: weight for name, weight in sorted(weights.items()) if weight}
    if not warmer:
        active.pop("distillation", None)
    if not active:
        raise UserError("all loss weights are 0: set loss.reconstruction or another one above 0")
    if "slot_contrast" in active and num_frames < 2:
        raise UserError(
            f"loss.slot_contrast is {active['slot_contrast']}, but clips have 1 frame and it compares two: "
            "set data.num_frames to at least 2, or loss.slot_contrast to 0"
        )
    return active


def weighted_losses(
    outputs: Mapping[str, Array], slot_mask: Bool[Array, "B N"] | None, weights: Mapping[str, float]
) -> dict[str, Float[Array, ""]]:
    """Each term times its weight."""
    return {name: weight * TERMS[name](outputs, slot_mask) for name, weight in weights.items()}
