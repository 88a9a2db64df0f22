"""Pictures of what a model found."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import animation, contact_sheet
from smoothsa_jax.inference.frames import Picture, as_frame, as_frames
from smoothsa_jax.inference.segmentation import Segmentation

FORMATS = (".png", ".gif")


def draw(
    pictures: Picture | Sequence[Picture],
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
        UserError: another suffix, or masks that do not fit the pictures.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(
            f"{path} ends with {Path(path).suffix!r}, expected one of {', '.join(FORMATS)}"
        )
    results = [found] if isinstance(found, Segmentation) else list(found)
    masks = np.stack([result.masks for result in results])
    masks = masks.reshape(-1, *masks.shape[-2:])
    many = getattr(pictures, "ndim", None) == 4 or isinstance(pictures, list | tuple)
    frames = as_frames(pictures) if many else as_frame(pictures)[None]
    write = animation if Path(path).suffix.lower() == ".gif" else contact_sheet
    write(frames, None, {"slots": masks}, path)
