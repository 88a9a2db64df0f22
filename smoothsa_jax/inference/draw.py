"""Pictures of what a model found."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import animation, contact_sheet
from smoothsa_jax.inference.frames import Picture, as_frame, as_frames, is_picture
from smoothsa_jax.inference.segmentation import Segmentation

FORMATS = (".png", ".gif")


def draw(
    pictures: Picture | Iterable[Picture],
    found: Segmentation | Sequence[Segmentation],
    path: str | os.PathLike,
) -> None:
    """Writes the slots as colours over the pictures they were found in.

    Args:
        pictures: as they were given to `segment` or `stream`.
        found: what that gave, or the list of what `stream` gave.
        path: a `.png`, which shows up to eight frames side by side, or a `.gif`, which plays them; written whole or not at
            all.

    Raises:
        UserError: another suffix, no result, or masks that do not fit the pictures.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(
            f"{path} ends with {Path(path).suffix!r}, expected one of {', '.join(FORMATS)}"
        )
    results = [found] if isinstance(found, Segmentation) else list(found)
    shapes = sorted({result.masks.shape for result in results})
    if len(shapes) != 1:
        raise UserError(
            f"what was found has masks of shapes {', '.join(map(str, shapes)) or 'none'}, expected one: draw one call of "
            "`segment`, or the list of what `stream` gave"
        )
    masks = np.stack([result.masks for result in results])
    masks = masks.reshape(-1, *masks.shape[-2:])
    if getattr(pictures, "ndim", None) == 5:
        pictures = np.asarray(pictures).reshape(-1, *pictures.shape[2:])
    frames = as_frame(pictures)[None] if is_picture(pictures) else as_frames(pictures)
    write = animation if Path(path).suffix.lower() == ".gif" else contact_sheet
    write(frames, None, {"slots": masks}, path)
