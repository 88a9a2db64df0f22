"""Count pixels of predicted against true segments on the device.

Only a small table is transferred to the host, instead of a mask for every pixel.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.upsampling import over_frames, segments_from_masks
from smoothsa_jax.inputs import NO_SEGMENT
from smoothsa_jax.models.backend import CPU, Backend, backend_of


class CountedMasks(NamedTuple):
    """Masks of a batch of clips, and their pixel counts against the labels.

    Attributes:
        segments: the slot of each pixel.
        counts: pixels of a clip, or of each of its frames, in slot n and true segment k. Row N and
            column 255 mean "in no segment".
    """

    segments: UInt8[Array, "B T H W"]
    counts: Int32[Array, "B N+1 256"] | Int32[Array, "B T N+1 256"]


def count_pixels(
    predicted: Int[Array, "... H W"],
    true: Int[Array, "... H W"],
    num_predicted: int,
    backend: Backend = CPU,
) -> Int32[Array, "... num_predicted+1 256"]:
    """Count pixels as `metrics.contingency` does, with a row and a column for "in no segment".

    The table always has 256 columns, so that one compiled program serves any number of segments.
    The function is meant for use inside `jax.jit`. Counts are exact below 2**31 pixels.

    Args:
        predicted: numbers in 0 .. num_predicted - 1; any other number means "in no segment".
        true: numbers in 0 .. 254, or 255 = in no segment.
        num_predicted: number of predicted segments; static.
        backend: the backend to compile for; static.

    Returns:
        A table for each frame.
    """
    columns = NO_SEGMENT + 1
    rows = jnp.minimum(predicted.astype(jnp.int32), num_predicted)
    places = rows * columns + true.astype(jnp.int32)
    *lead, height, width = places.shape
    # One table per frame: with one per clip, all pixels of a clip would contend for few addresses
    # on a GPU.
    add = lambda at: jnp.zeros((num_predicted + 1) * columns, jnp.int32).at[at].add(1)  # noqa: E731
    tables = over_frames(add, places.reshape(-1, height * width), backend)
    return tables.reshape(*lead, num_predicted + 1, columns)


def counted_masks(
    masks: Float[Array, "B T N h w"],
    labels: UInt8[np.ndarray, "B T H W"],
    slot_mask: Bool[np.ndarray | Array, "B N"] | Bool[np.ndarray | Array, "B T N"] | None = None,
    num_frames: Int[np.ndarray, " B"] | None = None,
    per_frame: bool = False,
    skip_frames: int = 0,
) -> CountedMasks:
    """Resize masks to the labels, and count pixels over whole clips.

    All batches of one shape share one compiled program. Each sample stays on the device that holds
    its masks.

    Args:
        masks: as for `segments_from_masks`.
        labels: 0 background, 1.. objects, 255 in no segment.
        slot_mask: as for `segments_from_masks`; on the host, or where the masks are.
        num_frames: number of frames of each clip that count; the rest are padding. None: all count.
        per_frame: count over each frame instead; the counts of padding are 0.
        skip_frames: how many frames at the start of each clip do not count.

    Raises:
        UserError: shapes do not match, or there are more slots than segment numbers.
    """
    batch, length, num_slots = masks.shape[:3]
    if labels.shape[:2] != (batch, length):
        raise UserError(
            f"labels of shape {labels.shape} do not fit masks of shape {masks.shape}: expected the "
            "same clips and frames"
        )
    if num_slots > NO_SEGMENT:
        raise UserError(
            f"{num_slots} slots cannot be scored, at most {NO_SEGMENT}: 255 stands for no segment; "
            "lower model.num_slots"
        )
    sharding = getattr(masks, "sharding", None)
    sharding = sharding if isinstance(sharding, NamedSharding) else None
    beside = labels, slot_mask, num_frames
    if sharding is not None:
        place = lambda x: jax.make_array_from_process_local_data(sharding, x)  # noqa: E731
        beside = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else place(x), beside)
    devices = getattr(masks, "devices", set)()
    backend = backend_of(next(iter(devices))) if devices else CPU
    return _counted(masks, *beside, sharding, backend, per_frame, skip_frames)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _counted(
    masks: Array,
    labels: Array,
    slot_mask: Array | None,
    num_frames: Array | None,
    sharding: NamedSharding | None,
    backend: Backend,
    per_frame: bool,
    skip_frames: int,
) -> CountedMasks:
    def of_clips(masks, labels, slot_mask, num_frames):
        size, num_slots = labels.shape[-2:], masks.shape[2]
        segments = segments_from_masks(masks, size, slot_mask, backend=backend)
        counts = count_pixels(segments, labels, num_slots, backend)
        if num_frames is not None:
            there = jnp.arange(masks.shape[1]) < num_frames[:, None]
            counts = jnp.where(there[..., None, None], counts, 0)
        if skip_frames:
            counts = counts.at[:, :skip_frames].set(0)
        return CountedMasks(segments, counts if per_frame else counts.sum(axis=1))

    if sharding is not None:
        mesh, spec = sharding.mesh, sharding.spec
        of_clips = jax.shard_map(of_clips, mesh=mesh, in_specs=spec, out_specs=spec)
    return of_clips(masks, labels, slot_mask, num_frames)
