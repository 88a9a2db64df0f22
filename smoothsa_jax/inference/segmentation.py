"""What a model finds in pictures."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from smoothsa_jax.evaluation.upsampling import upsample


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The objects in a picture, or in several: `*lead` is () for one, (B,), (T,) or (B, T) as they were handed in.

    Attributes:
        slots: one vector for each slot.
        masks: which slot each pixel belongs to, at the picture's own size (method section 3).
        attention: of slot attention, which shares each token out among the slots, on the grid of the features.
        decoder_attention: of the decoder; the masks are made of it.
        reconstruction_error: mean square over the channels of what the decoder leaves of each token.
        slot_mask: which slots took part.
        cold: which frames were started from queries; the others from the slots of the frame before.
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
        """Each slot's share of each pixel: the decoder's attention at the picture's size. Made anew each time."""
        return np.asarray(upsample(self.decoder_attention, self.masks.shape[-2:]))

    @property
    def state(self) -> dict[str, np.ndarray]:
        """From which `stream` goes on with the next frame; plain arrays, for `np.savez`."""
        return {"slots": self.slots, "slot_mask": self.slot_mask}
