"""The preparation of pixels that encoders share."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.parts import check_whole

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # of pixels in 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)
# What encoders see: pixels by ImageNet's statistics, in 0..1, or in -1..1.
RANGES = ("imagenet", "unit", "signed")


def normalize(pixels: Array, encoder: Any = None) -> Float[Array, "... H W 3"]:
    """Bring uint8 pixels to the range that an encoder sees; floats must be in it already.

    Args:
        pixels: of pictures.
        encoder: its attribute `pixels` is one of `RANGES`; without it, "imagenet".
    """
    if not jnp.issubdtype(pixels.dtype, jnp.integer):
        return pixels
    seen = getattr(encoder, "pixels", "imagenet")
    if seen != "imagenet":
        unit = pixels.astype(jnp.float32) / 255.0
        return unit if seen == "unit" else 2.0 * unit - 1.0
    mean, std = (jnp.asarray(x, jnp.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels.astype(jnp.float32) - mean) / std


def denormalize(pixels: Float[Array, "... 3"], seen: str) -> Float[Array, "... 3"]:
    """Bring pixels from one of `RANGES` to 0..1; what is outside stays outside.

    Args:
        pixels: floats.
        seen: their range.
    """
    if seen == "unit":
        return pixels
    if seen == "signed":
        return (pixels + 1.0) / 2.0
    mean, std = (jnp.asarray(x, jnp.float32) / 255.0 for x in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels * std + mean


def grid_of(image_size: tuple[int, int], patch: int, what: str) -> tuple[int, int]:
    """The feature grid (h, w) of an image; raise UserError if it does not divide into patches."""
    check_whole("model.encoder.patch", patch)
    if image_size[0] % patch or image_size[1] % patch:
        raise UserError(
            f"{what} of {image_size[0]}x{image_size[1]} pixels does not divide into patches of "
            f"{patch}: choose data.image_size so that it does"
        )
    return image_size[0] // patch, image_size[1] // patch
