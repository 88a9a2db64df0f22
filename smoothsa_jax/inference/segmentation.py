"""The result of applying a model to pictures."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from smoothsa_jax.errors import UserError


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
        iterations: how many the aggregator has run, where it may stop early; otherwise None.
    """

    slots: Float[np.ndarray, "*lead N D"]
    masks: Int[np.ndarray, "*lead H W"]
    attention: Float[np.ndarray, "*lead N h w"]
    decoder_attention: Float[np.ndarray, "*lead N h w"]
    reconstruction_error: Float[np.ndarray, "*lead h w"]
    slot_mask: Bool[np.ndarray, "*lead N"]
    cold: Bool[np.ndarray, "*lead"]
    iterations: Int[np.ndarray, "*lead"] | None = None

    @property
    def soft_masks(self) -> Float[np.ndarray, "*lead N H W"]:
        """Each slot's share of each pixel: the decoder's attention, upsampled on every access."""
        # Imported on use only: processes that write results need no JAX.
        from smoothsa_jax.evaluation.upsampling import upsample

        return np.asarray(upsample(self.decoder_attention, self.masks.shape[-2:]))

    def without(self, *slots: int) -> "Segmentation":
        """Return the same with slots left out, for `Segmenter.reconstruct`.

        Only `slot_mask` changes: the masks are those that were found.

        Args:
            slots: numbers of slots in use.

        Raises:
            UserError: there is no such slot, or no slot would be left.
        """
        mask = self.slot_mask.copy()
        for slot in slots:
            _check_slot(slot, self)
            mask[..., slot] = False
        if not mask.any(axis=-1).all():
            raise UserError(
                f"without {', '.join(map(str, slots))} no slot is left; leave fewer slots out"
            )
        return dataclasses.replace(self, slot_mask=mask)

    def swapped(self, slot: int, other: "Segmentation", other_slot: int) -> "Segmentation":
        """Return the same with a slot of another picture or video, for `Segmenter.reconstruct`.

        Frame t gets the slot of the other video's frame t, or of its last one after its end; of a
        picture, every frame gets the same. Only `slots` changes.

        Args:
            slot: number of the slot that is replaced.
            other: a picture or a video by the same model.
            other_slot: number of its slot.

        Raises:
            UserError: there is no such slot, or the other model's slots have another width.
        """
        _check_slot(slot, self)
        _check_slot(other_slot, other, "the other picture has")
        widths = self.slots.shape[-1], other.slots.shape[-1]
        if widths[0] != widths[1]:
            raise UserError(
                f"a slot of width {widths[1]} cannot replace one of width {widths[0]}; segment "
                "both pictures with the same model"
            )
        lead, new = self.slots.shape[:-2], other.slots[..., other_slot, :]
        if new.ndim > 2 or (new.ndim == 2 and not lead):
            raise UserError(
                f"the other picture has the leading axes {other.slots.shape[:-2]}, expected one "
                "picture, or for a video one video; segment it alone"
            )
        if new.ndim == 2:
            new = new[np.minimum(np.arange(lead[-1]), len(new) - 1)]
        slots = self.slots.copy()
        slots[..., slot, :] = new
        return dataclasses.replace(self, slots=slots)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays for `np.savez`, from which `stream` continues with the next frame."""
        return {"slots": self.slots, "slot_mask": self.slot_mask}


def _check_slot(slot: int, found: Segmentation, begins: str = "there is") -> None:
    """Refuse a slot that does not exist, or that is in use in no frame."""
    number = found.slots.shape[-2]
    used = np.flatnonzero(found.slot_mask.reshape(-1, number).any(axis=0)).tolist()
    if isinstance(slot, bool) or slot not in used:
        raise UserError(
            f"{begins} no slot {slot}; expected one of {', '.join(map(str, used))}, the values of "
            "its label map"
        )
