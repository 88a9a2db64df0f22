"""What a decoder predicts besides the target: logits over the patches of the next frame.

A loss such as `time_similarity` reads them (VideoSAUR, arXiv 2306.04829). The decoder returns all
channels side by side; the model takes them apart.
"""

from typing import Any

from jaxtyping import Array, Float

from smoothsa_jax.models.interfaces import NEXT_FRAME
from smoothsa_jax.parts import check_one_of

LOGITS = (False, "next_frame", "only")


def predicted_channels(logits: Any, width: int, grid: tuple[int, int]) -> int:
    """Return K, the number of channels of a prediction.

    Args:
        logits: the decoder's setting. False: none. "next_frame": M logits after the C channels of
            the target. "only": the logits alone.
        width: C.
        grid: (h, w) of the M patches.

    Raises:
        UserError: there is no such setting.
    """
    check_one_of("model.decoder.logits", logits, LOGITS)
    num_patches = grid[0] * grid[1]
    return {False: width, "next_frame": width + num_patches, "only": num_patches}[logits]


def taken_apart(
    predicted: Float[Array, "... K"], logits: Any, grid: tuple[int, int]
) -> dict[str, Float[Array, "..."]]:
    """Return `prediction` and `next_frame_logits`, as far as a decoder has them.

    Args:
        predicted: all channels of the prediction.
        logits: the decoder's setting; see `predicted_channels`.
        grid: (h, w) of the M patches.
    """
    if not logits:
        return {"prediction": predicted}
    found = {NEXT_FRAME: predicted[..., -grid[0] * grid[1] :]}
    if logits == "next_frame":
        found["prediction"] = predicted[..., : -grid[0] * grid[1]]
    return found
