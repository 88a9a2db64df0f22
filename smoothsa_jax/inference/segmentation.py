"""The result of applying a model to pictures."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from smoothsa_jax.evaluation.upsampling import upsample


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The objects in one or more pictures.

    `*lead` is () for one picture, or (B,), (T,) or (B, T), as in the input.

    Attributes:
        slots: one vector per slot.
        masks: the slot of each pixel, at the picture's own size.
        attention: the attention of slot attention, which distributes each token among the slots, on
            the grid of the features.
        decoder_attention: the attention of the decoder, from which the masks are computed.
        reconstruction_error: the decoder's squared error for each token, averaged over channels.
        slot_mask: the slots in use.
        cold: the frames started from queries; other frames start from the previous frame's slots.
    """

    slots: Float[np.ndarray, "*lead N D"]
    masks: Int[np.ndarray, "*lead H W"]
    attention: Float[np.ndarray, "*lead N h w"]
    decoder_attention: Float[np.ndarray, "*lead N h w"]
    reconstruction_error: Float[np.ndarray, "*lead h w"]
    slot_mask: Bool[np.ndarray, "*lead N"]
    cold: Bool[np.ndarray, "*lead"]

    @property
    def soft_masks(self) -> Float[np.ndarray, "*lead N H W"]:
        """Each slot's share of each pixel: the decoder's attention, upsampled on every access."""
        return np.asarray(upsample(self.decoder_attention, self.masks.shape[-2:]))

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays for `np.savez`, from which `stream` continues with the next frame."""
        return {"slots": self.slots, "slot_mask": self.slot_mask}
