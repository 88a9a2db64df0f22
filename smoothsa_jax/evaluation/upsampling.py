"""Turn attention over slots into a label for every pixel (docs/design.md, section 3)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.bilinear import interpolation_matrix
from smoothsa_jax.models.backend import CPU, Backend

FRAMES_AT_ONCE = 16  # 0.1 GB with 24 slots at 256x256 pixels


@functools.partial(jax.jit, static_argnums=1)
def upsample(maps: Float[Array, "*lead h w"], size: tuple[int, int]) -> Float[Array, "*lead H W"]:
    """Resize bilinearly to a static `size` (H, W); see `interpolation_matrix`."""
    rows = interpolation_matrix(size[0], maps.shape[-2])
    columns = interpolation_matrix(size[1], maps.shape[-1])
    # HIGHEST: reduced matmul precision would move the borders between slots.
    large = jnp.einsum("yh,...hw->...yw", rows, maps, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("...yw,xw->...yx", large, columns, precision=jax.lax.Precision.HIGHEST)


def over_frames(function: Callable[[Any], Any], frames: Any, backend: Backend) -> Any:
    """Apply `function` to each frame, like `jax.lax.map` over the first axis of all arrays.

    A CPU processes one frame at a time, which saves memory and keeps the data in its cache. Other
    devices process FRAMES_AT_ONCE together, since a single frame would leave them idle.
    """
    together = None if backend.is_cpu else FRAMES_AT_ONCE
    return jax.lax.map(function, frames, batch_size=together)


@functools.partial(jax.jit, static_argnums=1, static_argnames="backend")
def segments_from_masks(
    masks: Float[Array, "*lead N h w"],
    size: tuple[int, int],
    slot_mask: Bool[Array, "*first N"] | None = None,
    *,
    backend: Backend = CPU,
) -> Int[Array, "*lead H W"]:
    """Return the slot of each pixel: masks resized bilinearly, then argmax over slots.

    Only a few frames' (N, H, W) are in memory at a time; see `over_frames`. May be called inside
    `jax.jit`.

    Args:
        masks: soft masks on any grid, for example a decoder's (B,T,N,h,w).
        size: (H, W) of the result in pixels, as of the labels; static.
        slot_mask: true = valid; any shape (..., N) whose leading axes are the first axes of
            `masks`, for example (B, N). A masked slot gets no pixel.
        backend: the backend to compile for; static. The default is correct on every device, but
            slow on an accelerator.

    Returns:
        Slot numbers: uint8, like labels, or int32 for 256 slots or more.

    Raises:
        UserError: the shape of the slot mask does not fit the masks.
    """
    *lead, num_slots, h, w = masks.shape
    dtype = jnp.uint8 if num_slots <= 255 else jnp.int32
    maps = masks.astype(jnp.float32).reshape(-1, num_slots, h, w)

    def one_frame(args):
        frame, valid = args
        large = upsample(frame, size)
        if valid is not None:
            large = jnp.where(valid[:, None, None], large, -jnp.inf)
        return jnp.argmax(large, axis=0).astype(dtype)

    valid = None
    if slot_mask is not None:
        if slot_mask.shape != (*lead[: slot_mask.ndim - 1], num_slots):
            raise UserError(
                f"slot_mask of shape {slot_mask.shape} does not fit masks of shape {masks.shape}: "
                f"expected its first axes followed by {num_slots} slots"
            )
        middle = (1,) * (len(lead) - slot_mask.ndim + 1)
        valid = jnp.reshape(slot_mask, (*slot_mask.shape[:-1], *middle, num_slots))
        valid = jnp.broadcast_to(valid, (*lead, num_slots)).reshape(-1, num_slots)
    segments = over_frames(one_frame, (maps, valid), backend)
    return segments.reshape(*lead, *size)
