"""Bounding boxes from label maps."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from smoothsa_jax.errors import UserError


def boxes_from_segmentation(
    segmentation: UInt8[np.ndarray, "T H W"], ids: Sequence[int] | np.ndarray
) -> Float[np.ndarray, "T K 4"]:
    """Compute the boxes of the segments `ids`: left, top, right, bottom pixel index, inclusive.

    Left and right are divided by the width W, top and bottom by the height H. A segment that is
    absent from a frame has an all-zero box there.
    """
    _, height, width = segmentation.shape
    columns, rows = _extent(segmentation, np.asarray(ids, dtype=np.intp))
    left, top = columns.argmax(axis=-1), rows.argmax(axis=-1)
    right = width - 1 - columns[..., ::-1].argmax(axis=-1)
    bottom = height - 1 - rows[..., ::-1].argmax(axis=-1)
    boxes = np.stack([left / width, top / height, right / width, bottom / height], axis=-1)
    return np.where(columns.any(axis=-1)[..., None], boxes, 0.0).astype(np.float32)


def _extent(
    segmentation: UInt8[np.ndarray, "T H W"], ids: np.ndarray
) -> tuple[Bool[np.ndarray, "T K W"], Bool[np.ndarray, "T K H"]]:
    """Find the columns and rows of each frame that contain a pixel of each segment."""
    # One bit per segment: a bitwise or finds eight segments in one pass over the labels.
    columns, rows = [], []
    for chunk in np.split(ids, range(8, len(ids), 8)):
        bits = (1 << np.arange(len(chunk))).astype(np.uint8)
        table = np.zeros(256, dtype=np.uint8)
        table[chunk] = bits
        flags = table.take(segmentation)
        bits = bits[:, None]
        columns.append((np.bitwise_or.reduce(flags, axis=1)[:, None] & bits) > 0)
        rows.append((np.bitwise_or.reduce(flags, axis=2)[:, None] & bits) > 0)
    return np.concatenate(columns, axis=1), np.concatenate(rows, axis=1)


def whole_frame_box(height: int, width: int) -> Float[np.ndarray, " 4"]:
    """The box of a segment that reaches every border of the frame."""
    return np.array([0, 0, (width - 1) / width, (height - 1) / height], dtype=np.float32)


def pad_boxes(
    boxes: Float[np.ndarray, "T K 4"],
    num_slots: int,
    *,
    whole_frame: Float[np.ndarray, " 4"] | None = None,
) -> Float[np.ndarray, "T N 4"]:
    """Pad boxes to `num_slots` slots: the objects' boxes, then -1.

    Args:
        boxes: the boxes of K objects, without the background.
        num_slots: the number of slots N.
        whole_frame: the background's box, placed before the objects' in every frame; None: no
            background box.

    Raises:
        UserError: the boxes do not fit.
    """
    num_frames, num_objects, _ = boxes.shape
    first = int(whole_frame is not None)
    if num_objects + first > num_slots:
        background = " and of the background" if first else ""
        raise UserError(
            f"a sample has boxes of {num_objects} objects{background}, but the model has "
            f"{num_slots} slots; set model.num_slots to at least "
            f"{num_objects + first}"
        )
    padded = np.full((num_frames, num_slots, 4), -1.0, dtype=np.float32)
    if whole_frame is not None:
        padded[:, 0] = whole_frame
    padded[:, first : first + num_objects] = boxes
    return padded
